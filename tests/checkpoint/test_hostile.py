"""A stranger's checkpoint: nothing in its files hangs or crashes the verbs that read it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
from compressed_tensors.utils.match import match_targets
from hypothesis import example, given
from hypothesis import strategies as st
from maps import address
from torch import nn

from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.checkpoint.packings import compressed_tensors
from mixprec.checkpoint.patterns import Matcher
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.labels import KINDS
from mixprec.models.model import Model

MakeSource = Callable[..., Path]
Planner = Callable[..., Any]

NAMES = [address(layer, kind) for layer in (1, 8, 11) for kind in KINDS]
#: As they stand in published configurations of compressed-tensors and GPTQModel, and their relatives.
REAL = [
    r".*\.down_proj$",
    r"model\.layers\.\d+\.self_attn\.(q|k|v)_proj",
    r"^(?!.*(?:down|up)_proj).*$",
    r"(?!model\.layers\.0\.).*mlp",
    r".*(?<=layers\.)\d{2}.*gate.*",
    r".*\.(?:1[0-9]|7)\..*",
    r"(?i)MODEL\.LAYERS\.0\.",
    r"^model\.layers\.(?P<n>\d)\.mlp\.(gate|up)_proj$",
    r"model.layers.1",
    r"",
    r".*",
    r"[a-z.]+\d+[._a-z]+(?:q_proj|o_proj)\Z",
]
ENDLESS = [
    "(.*?.*?.*?.*?.*?.*?.*?.*?.*?.*?.*?.*?.*?.*?)[^\\w.]",
    "(?:(?:.{0,1000}){0,1000}){0,1000}[^\\w.]",
    "(?:(?:\\w|\\w\\w|\\w\\w\\w|\\.|\\.\\w)*){9}[^\\w.]",
]
BROKEN = ["(", "[", "*", "(?P<", "a{99999999999}", "(" * 3000 + ")" * 3000, "(?R)", "\\p{L}", "x" * 30_000, "(?<=a+)b"]


@pytest.mark.parametrize("pattern", REAL)
def test_matches_are_those_of_re(pattern: str) -> None:
    matcher = Matcher("config.json")
    for name in NAMES:
        assert matcher.match(pattern, name) == (re.match(pattern, name) is not None), name


@given(
    st.lists(st.sampled_from([*"ab.*?+()[]|^$\\d{1},-&~e<:", "[:digit:]", "{d}", "{e<=1}"]), max_size=8).map("".join),
    st.text("ab.1{[:d", max_size=8),
)
@example("a{d}", "b")
@example("{d", "{d")
@example("[[:digit:]]", "1")
@pytest.mark.filterwarnings("ignore:Possible (nested set|set)")
def test_matches_are_those_of_re_for_any_pattern(pattern: str, name: str) -> None:
    try:
        expected = re.match(pattern, name) is not None
    except re.error:
        return
    assert Matcher("config.json").match(pattern, name) == expected


@pytest.mark.parametrize("pattern", ENDLESS)
def test_endless_patterns_end(pattern: str) -> None:
    matcher = Matcher("config.json", budget=0.05)
    with pytest.raises(UserError, match=r"config\.json: the pattern .* takes too long"):
        matcher.match(pattern, "model.layers." + "1" * 60 + ".mlp.down_proj")


def test_the_budget_is_of_all_patterns_together() -> None:
    """Each match alone may be short; ten thousand of them are not."""
    matcher = Matcher("config.json", budget=0.05)
    with pytest.raises(UserError, match="takes too long"):
        for _ in range(10_000):
            matcher.match(r"(?:\w?\w?\.?){150}[^\w.]", NAMES[0])


@pytest.mark.parametrize("pattern", BROKEN, ids=lambda pattern: pattern[:12])
def test_broken_patterns(pattern: str) -> None:
    with pytest.raises(UserError, match=r"config\.json: .* is no regular expression"):
        Matcher("config.json").match(pattern, NAMES[0])


@pytest.fixture
def packed(source: MakeSource, planner: Planner, tmp_path: Path) -> Callable[..., Path]:
    """A packed checkpoint whose ``quantization_config`` a function has changed; none of our own card beside it."""

    def make(format: str, change: Callable[[dict[str, Any]], object]) -> Path:
        folder = tmp_path / format
        if not folder.is_dir():
            compress(Model(source()), planner(tmp_path / "source", "w4g32"), folder, format=FORMATS[format])
            (folder / "mixprec.json").unlink()
        changed = tmp_path / "changed"
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(folder, changed)
        config = json.loads((changed / "config.json").read_text())
        found = change(config["quantization_config"])
        if found is not None:
            config["quantization_config"] = found
        (changed / "config.json").write_text(json.dumps(config))
        return changed

    return make


def set_at(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return change


GROUP = ("config_groups", "group_0")
WRONG = [
    ("compressed-tensors", (*GROUP, "targets"), 5, "targets"),
    ("compressed-tensors", (*GROUP, "targets"), "Linear", "targets"),
    ("compressed-tensors", (*GROUP, "targets"), [5], "targets"),
    ("compressed-tensors", (*GROUP, "targets"), ["re:("], "no regular expression"),
    ("compressed-tensors", (*GROUP, "targets"), None, "targets"),
    ("compressed-tensors", ("config_groups",), [], "config_groups"),
    ("compressed-tensors", ("config_groups",), 5, "config_groups"),
    ("compressed-tensors", GROUP, ["Linear"], "group_0"),
    ("compressed-tensors", ("ignore",), 5, "ignore"),
    ("compressed-tensors", (*GROUP, "weights"), "int4", "weights"),
    ("compressed-tensors", (*GROUP, "weights", "num_bits"), "four", "num_bits"),
    ("compressed-tensors", (*GROUP, "weights", "num_bits"), 4.5, "num_bits"),
    ("compressed-tensors", (*GROUP, "weights", "num_bits"), True, "num_bits"),
    ("compressed-tensors", (*GROUP, "weights", "num_bits"), 10**30, "bits"),
    ("compressed-tensors", (*GROUP, "weights", "num_bits"), None, "bits"),
    ("compressed-tensors", (*GROUP, "weights", "group_size"), -3, "group_size"),
    ("compressed-tensors", (*GROUP, "weights", "group_size"), 0, "groups of 0"),
    ("compressed-tensors", (*GROUP, "weights", "group_size"), 10**30, "group_size"),
    ("compressed-tensors", (*GROUP, "weights", "group_size"), "32", "group_size"),
    ("compressed-tensors", (*GROUP, "weights", "symmetric"), "yes", "symmetric"),
    ("compressed-tensors", (*GROUP, "weights", "strategy"), 3, "strategy"),
    ("gptq", ("bits",), "four", "bits"),
    ("gptq", ("bits",), [4], "bits"),
    ("gptq", ("group_size",), -3, "group_size"),
    ("gptq", ("group_size",), 0, "groups of 0"),
    ("gptq", ("group_size",), 10**30, "group_size"),
    ("gptq", ("sym",), "yes", "sym"),
    ("gptq", ("dynamic",), ["x"], "dynamic"),
    ("gptq", ("dynamic",), {"+:.*": 5}, "dynamic"),
    ("gptq", ("dynamic",), {"+:.*": {"bits": "four"}}, "bits"),
    ("gptq", ("dynamic",), {"+:(": {"bits": 4}}, "no regular expression"),
    ("gptq", ("checkpoint_format",), 2, "checkpoint_format"),
]


@pytest.mark.parametrize(("format", "path", "value", "expected"), WRONG)
def test_wrong_types_name_file_and_key(
    packed: Callable[..., Path], format: str, path: tuple[str, ...], value: Any, expected: str
) -> None:
    folder = packed(format, set_at(*path, value=value))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        _ = open_checkpoint(folder).layouts
    assert expected in str(caught.value)
    with pytest.raises(UserError):
        Model(folder).load()


@pytest.mark.parametrize("value", [5, "gptq", [], [1], True, 0, ""])
def test_a_quantization_config_is_an_object(packed: Callable[..., Path], value: Any) -> None:
    folder = packed("gptq", lambda _: value)
    for read in (open_checkpoint, lambda path: Model(path).load()):
        with pytest.raises(UserError, match="config"):
            read(folder)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_endless_patterns_are_refused(
    packed: Callable[..., Path], pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Matcher.__init__, "__defaults__", (0.02,))
    targets = packed("compressed-tensors", set_at(*GROUP, "targets", value=[f"re:{pattern}"]))
    with pytest.raises(UserError, match="takes too long"):
        _ = open_checkpoint(targets).layouts
    dynamic = packed("gptq", set_at("dynamic", value={f"+:{pattern}": {"bits": 8}}))
    with pytest.raises(UserError, match="takes too long"):
        _ = open_checkpoint(dynamic).layouts


@given(
    st.lists(
        st.sampled_from(
            ["Linear", "Module", "re:.*", "re:.*down.*", "re:.*q_proj", "re:a", NAMES[0], NAMES[6], "Conv"]
        ),
        unique=True,
    ),
    st.sampled_from(NAMES),
)
def test_the_most_specific_target_is_taken_as_compressed_tensors_does(targets: list[str], name: str) -> None:
    theirs = match_targets(name, nn.Linear(1, 1), targets)
    assert compressed_tensors.target(targets, name, Matcher("config.json")) == (theirs[0] if theirs else None)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "two"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": None},
        {"num_hidden_layers": [2]},
        {"hidden_size": -32},
        {"hidden_size": 10**30},
        {"hidden_size": 1.5},
        {"intermediate_size": {}},
        {"vocab_size": 10**18},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5, "head_dim": None},
        {"max_position_embeddings": -1},
        {"model_type": 5},
        {"model_type": ["llama"]},
        {"rope_scaling": 5},
        {"rope_parameters": "x"},
        {"torch_dtype": 3},
        {"dtype": "int7"},
        {"architectures": 5},
        {"hidden_act": "none"},
        {"rms_norm_eps": "x"},
        {"eos_token_id": {"a": 1}},
    ],
)
def test_sizes_of_a_stranger(source: MakeSource, change: dict[str, Any]) -> None:
    folder = source()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    try:
        _ = open_checkpoint(folder).layouts
        Model(folder).load()
    except UserError as problem:
        assert str(folder) in str(problem) or "config" in str(problem)


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '{"a": 1, "a": 2}', "[" * 5000, "{", "", "\ufeff{}", '{"x": "\\ud800"}']
)
def test_a_configuration_that_is_no_object(source: MakeSource, text: str) -> None:
    folder = source()
    (folder / "config.json").write_text(text)
    for read in (open_checkpoint, lambda path: load_config(str(path)), lambda path: Model(path).load()):
        with pytest.raises(UserError, match=r"config"):
            read(folder)


def test_regex_is_what_bounds() -> None:
    """The timeout is a feature of the package that pyproject names."""
    with pytest.raises(TimeoutError):
        regex.compile(ENDLESS[1]).match("model.layers." + "1" * 60, timeout=0.01)
