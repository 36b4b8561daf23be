"""Recipes: everything that is wrong is told at once, overrides change what an edit would change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mixprec import recipe
from mixprec.core.errors import UserError

MINIMAL: dict[str, Any] = {"model": {"id": "m"}, "plan": {"default": "w3g64"}}


def write(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def refusal(tmp_path: Path, data: Any, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe.load(write(tmp_path, data), overrides)
    return str(caught.value)


def test_unknown_keys_are_listed_all_at_once_with_what_was_meant(tmp_path: Path) -> None:
    data = {
        "model": {"id": "m", "dtpye": "float32"},
        "plan": {"default": "w3g64", "rules": [{"match": "last_up", "format": "keep", "why": "x"}]},
        "evalute": {},
        "evaluate": {"text": "x", "traces": {"source": "y", "annotater": "cues"}},
    }
    message = refusal(tmp_path, data)
    assert message.splitlines()[0].endswith("r.yaml: 4 problems")
    for expected in (
        "model.dtpye: unknown key; did you mean dtype?",
        "plan.rules[0].why: unknown key (keys here: match, format, sparsity, method)",
        "evalute: unknown key; did you mean evaluate?",
        "evaluate.traces.annotater: unknown key; did you mean annotator?",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"variants": {"a": {"plan": {"default": "keep"}}}}, "plan and variants exclude one another"),
        ({"importance": {}}, "importance needs traces"),
        ({"plan": None}, "nothing to do"),
        ({"model": {}}, "model.id: this key is missing"),
        ({"evaluate": {}}, "evaluate: nothing to evaluate on"),
        ({"evaluate": {"text": "x", "text_tokens": 1}}, "evaluate.text_tokens: 1: "),
        ({"plan": {"default": "w9g64"}}, "plan.default: "),
        ({"model": {"id": "m", "dtype": "int8"}}, "'float32', 'bfloat16' or 'float16'"),
        ({"traces": {"source": "x", "first": 0}}, "traces.first: 0"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    message = refusal(tmp_path, MINIMAL | change)
    assert expected in message
    assert message.startswith(str(tmp_path / "r.yaml"))
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", ["", ".", ".hidden", "..", "a/b", "a b", "../x"])
def test_variants_become_folders(tmp_path: Path, name: str) -> None:
    data = {"model": {"id": "m"}, "variants": {name: {"plan": {"default": "keep"}}}}
    assert "they become folders" in refusal(tmp_path, data)


def test_rules_that_rank_need_an_importance(tmp_path: Path) -> None:
    ranked = {"default": "keep", "rules": [{"match": {"least_important": "last_*"}, "format": "w3g64"}]}
    data = {"model": {"id": "m"}, "variants": {"ranked": {"plan": ranked}}}
    assert "variant ranked ranks modules by importance" in refusal(tmp_path, data)
    recipe.load(write(tmp_path, data | {"importance": {}, "traces": {"source": "x"}}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {id: m}\nplan: [", r"r\.yaml:\d: not valid YAML"),
        ("- a", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        (
            "model: {id: m}\nmodel: {id: n}\nplan: {default: keep}",
            r"r\.yaml:2: not valid YAML \(the key 'model' is there twice",
        ),
        ("model: {id: m}\nplan:\n  default: keep\n  default: w3g64", r"r\.yaml:4: .*'default' is there twice"),
        ("model: {id: m}\nplan: {default: keep}\ntitle: \x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=expected):
        recipe.load(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        recipe.load(tmp_path / "gone.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        recipe.load(tmp_path / "b.yaml")


@given(
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(2, 10**6),
    st.sampled_from(["w2g16", "w8g128_asym", "keep"]),
    st.booleans(),
)
def test_overrides_equal_edits(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, n: int, form: str, text: bool
) -> None:
    folder = tmp_path_factory.mktemp("r")
    edited = {"model": {"id": "m", "dtype": dtype}, "plan": {"default": form}}
    overrides = [f"model.dtype={dtype}", f"plan.default={form}"]
    if text:
        edited["evaluate"] = {"text": "a=b", "text_tokens": n}
        overrides += ["evaluate.text=a=b", f"evaluate.text_tokens={n}"]
    assert recipe.load(write(folder, MINIMAL), overrides) == recipe.load(write(folder, edited))


def test_overrides_that_take_away_or_replace_parts(tmp_path: Path) -> None:
    data = MINIMAL | {"evaluate": {"text": "x"}, "traces": {"source": "y"}, "importance": {}}
    changed = recipe.load(write(tmp_path, data), ["evaluate=null", "plan={default: keep}", "importance=null"])
    assert changed.evaluate is None
    assert changed.importance is None
    assert str(changed.all_variants["compressed"].plan.default) == "keep"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dtype", "write key.sub=value"),
        ("model.id.x=1", "id holds no keys"),
        ("plan.rules.0.format=keep", "plan.rules"),
        ("model.dtype=[", "not valid YAML"),
        ("model.dtpye=float32", "did you mean dtype"),
        ("=1", "write key.sub=value"),
    ],
)
def test_overrides_that_cannot_be(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_data_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(recipe.DATA_VARIABLE, raising=False)
    chosen = recipe.Recipe.model_validate(MINIMAL | {"data": "~/in_recipe"})
    assert recipe.data_folder(chosen, None) == Path.home() / "in_recipe"
    monkeypatch.setenv(recipe.DATA_VARIABLE, "in_variable")
    assert recipe.data_folder(chosen, None) == Path("in_variable")
    assert recipe.data_folder(chosen, tmp_path) == tmp_path
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("x")
    assert recipe.locate("data:sub/a.txt", tmp_path) == str(tmp_path / "sub" / "a.txt")
    assert recipe.locate("bundled:held_out", None) == "bundled:held_out"
    with pytest.raises(UserError, match=r"data:sub/b\.txt: .*does not exist; check --data"):
        recipe.locate("data:sub/b.txt", tmp_path)
    with pytest.raises(UserError, match="no data folder is known; give --data"):
        recipe.locate("data:sub/a.txt", None)


def test_the_catalogue() -> None:
    known = recipe.catalogue()
    assert {"quickstart", "paper/table3_llama_8b", "paper/table4_llama_8b", "r1_traces_smollm2"} <= set(known)
    for name, path in known.items():
        assert recipe.load(path).title
        # A recipe's first line is the command that runs it.
        assert path.read_text().splitlines()[0].startswith(f"# mixprec run recipes/{name}.yaml")


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundled = recipe.catalogue()["quickstart"]
    assert (
        recipe.find("quickstart") == recipe.find("quickstart.yaml") == recipe.find("recipes/quickstart.yaml") == bundled
    )
    (tmp_path / "quickstart.yaml").write_text("mine")
    assert recipe.find("quickstart.yaml") == Path("quickstart.yaml")  # what the user sees goes first
    assert recipe.find("quickstart") == bundled
    for name in ("quickstrat", "no/such/quickstart.yaml", ""):
        with pytest.raises(UserError, match=r"no such recipe; there are .*quickstart"):
            recipe.find(name)


def test_a_recipe_does_not_change() -> None:
    chosen = recipe.Recipe.model_validate(MINIMAL)
    with pytest.raises(ValidationError):
        chosen.title = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("parts", "methods"),
    [
        ({}, {"rtn"}),
        ({"compress": {"method": "magnitude"}, "plan": {"default": "keep", "sparsity": 0.5}}, {"magnitude"}),
        (
            {"plan": {"default": "w3g64", "rules": [{"match": "last_up", "format": "w4g64", "method": "gptq"}]}},
            {"rtn", "gptq"},
        ),
        ({"plan": None, "sensitivity": {"formats": ["w3g64"], "method": "awq"}}, {"awq"}),
        ({"plan": {"default": "w3g64", "method": "gptaq"}}, {"gptaq"}),
    ],
)
def test_the_methods_that_a_recipe_names(tmp_path: Path, parts: dict[str, Any], methods: set[str]) -> None:
    """A warning about the Hessian is for those that have one."""
    calibration = {"calibration": {"traces": "bundled:attribution", "samples": 4, "tokens": 16}}
    compress = calibration | parts.get("compress", {})
    assert recipe.load(write(tmp_path, MINIMAL | parts | {"compress": compress})).methods == methods
