"""JSON and YAML of unknown origin: what is read, what is refused and where, in bounded steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixprec import recipe
from mixprec.core import artifacts, parsing
from mixprec.core.errors import UserError
from mixprec.core.parsing import Malformed, dump_yaml, parse_json, parse_yaml
from mixprec.models.model import Model

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=("Cs", "Cc"))), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN)
def test_json_is_read_as_json_reads_it(data: Any) -> None:
    for ascii in (True, False):
        text = json.dumps(data, ensure_ascii=ascii)
        assert parse_json(text) == data


@given(PLAIN)
def test_yaml_that_we_write_is_read_back_by_us_and_by_yaml_1_1(data: Any) -> None:
    text = dump_yaml({"data": data})
    assert parse_yaml(text) == {"data": data}
    assert yaml.safe_load(text) == {"data": data}


@given(PLAIN)
def test_json_is_yaml(data: Any) -> None:
    text = json.dumps({"data": data})
    assert parse_yaml(text) == {"data": data}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested in more than 100 levels"),
        ("[" * 101 + "]" * 101, "nested in more than 100 levels"),
        ('{"a":' * 150 + "1" + "}" * 150, "nested in more than 100 levels"),
        ("1" * 5000, "an integer with thousands of digits"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ('{"a": 1e999}', "holds 1e999, which is too large"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a": "\\ud800"}', "half of a character"),
        ('{"a\\udfff": 1}', "half of a character"),
        ('{"a": [["\\ud83d x"]]}', "half of a character"),
        ("", "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ('{"a": 1}\nx', "not valid JSON"),
    ],
)
def test_json_that_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=expected):
        parse_json(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json.*" + expected):
        artifacts.read_json(tmp_path / "x.json")


def test_json_of_others_may_hold_infinity() -> None:
    assert parse_json('{"time_step_limit": [0.0, Infinity], "emoji": "\\ud83d\\ude00"}', finite=False) == {
        "time_step_limit": [0.0, float("inf")], "emoji": "\U0001f600"
    }  # fmt: skip
    assert parse_json("[" * 100 + "]" * 100)


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("[]", "3", "null", '"x"'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"config\.json: expected a JSON object"):
            artifacts.read_object(path)


def test_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for line in ('{"a": "\\ud800"}', "[" * 5000, '{"a": 1, "a": 1}', "[1]", '{"a": ' + "9" * 5000 + "}"):
        path.write_text(f'{{"a": 1}}\n\n{line}\n')
        with pytest.raises(UserError, match=r"x\.jsonl:3: "):
            artifacts.read_jsonl(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2:4", "2:4"),
        ("12:30:45", "12:30:45"),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("2024-13-45", "2024-13-45"),
        ("1_000", "1_000"),
        ("012", 12),
        ("0o14", 12),
        ("0xC", 12),
        ("1e-3", 0.001),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+3", 3),
        ("=", "="),
        ("~", None),
        ("", None),
        ("NULL", None),
        ("True", True),
        ("tRUE", "tRUE"),
        ("-.inf", float("-inf")),
        ('"2"', "2"),
        ("! 2", None),
        ("true\n", True),
        ("{no: 1, 3: 2, ~: 3, 2:4: 4}", {"no": 1, "3": 2, "~": 3, "2:4": 4}),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_yaml_is_the_core_schema_of_1_2(text: str, expected: Any) -> None:
    if text.startswith("!"):
        with pytest.raises(Malformed, match="tag"):
            parse_yaml(text)
        return
    found = parse_yaml(text)
    assert (type(found), found) == (type(expected), expected)


def test_aliases_are_copies_and_mappings_merge() -> None:
    data = parse_yaml("a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}\nd: {<<: [{y: 5}, *a], z: 6}")
    assert data["c"] == {"x": 3, "y": [2]}
    assert data["d"] == {"y": 5, "x": 1, "z": 6}
    data["b"]["y"].append(7)
    assert data["a"] == {"x": 1, "y": [2]}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 300))
MERGES = "a0: &a0 {k0: 0}\n" + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}, k{n}: 0}}\n" for n in range(1, 300))
REFUSED = [
    (BOMB, "values with all aliases written out"),
    (CHAIN, "nested in more than 100 levels"),
    (MERGES, "nested in more than 100 levels"),
    ("a: &a [*a]", "stands within itself"),
    ("a: &a {<<: *a}", "stands within itself"),
    ("a: *b", "undefined alias"),
    ("[" * 500 + "]" * 500, "nested in more than 100 levels"),
    ("- " * 500 + "x", "nested in more than 100 levels"),
    ("a: !!python/object/apply:os.system [ls]", "the tag"),
    ("a: !!int x", "the tag"),
    ("a: !!timestamp x", "the tag"),
    ("a: !secret x", "the tag"),
    ("? [a, b]\n: 1", "can't be a key"),
    ("{{a: 1}: 2}", "can't be a key"),
    ("a: 1\na: 2", "the key 'a' is there twice"),
    ("{<<: 3}", "<< takes a mapping"),
    ("{<<: [3]}", "<< takes a mapping"),
    ("a: " + "9" * 5000, "thousands of digits"),
    ("a: b\x00", "not valid YAML"),
    ("a: \x1b", "not valid YAML"),
    ("a: 1\n---\nb: 2", "single document"),
    ('a: "\\ud800"', "half of a character"),
    ("a: [", "not valid YAML"),
    ("a: @x", "not valid YAML"),
    ("%YAML 3.0\n---\na: 1", "not valid YAML"),
    ("#" * 1_000_001, "longer than"),
    ("\ta: 1", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED, ids=[f"{n}" for n in range(len(REFUSED))])
def test_yaml_that_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=expected):
        parse_yaml(text)
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml.*: "):
        recipe.load(path)
    path.write_text("model: {id: m}\nplan: {default: keep}\n")
    with pytest.raises(UserError, match="--set"):
        recipe.load(path, [f"title={text}"])


def test_a_bomb_is_refused_after_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """9^12 values are announced, a few dozen are composed, none is built."""
    calls = []
    monkeypatch.setattr(parsing, "_value", lambda node: calls.append(node))
    with pytest.raises(Malformed):
        parse_yaml(BOMB)
    assert not calls


@pytest.mark.parametrize("override", ["=1", ".a=1", "a..b=1", "model.=1", "x", "model.id.x=1", "a=[", "a=" + BOMB])
def test_odd_overrides(override: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {id: m}\nplan: {default: keep}\n")
    with pytest.raises(UserError, match="--set"):
        recipe.load(path, [override])


def test_an_override_changes_one_of_two_aliases(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {id: m}\nvariants: {a: &a {plan: {default: w3g64}}, b: *a}\n")
    variants = recipe.load(path, ["variants.a.plan.default=keep"]).all_variants
    assert [str(each.plan.default) for each in variants.values()] == ["keep", "w3g64"]


def test_a_pattern_needs_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {id: m}\nplan: {default: keep, sparsity: 2:4, method: sparsegpt}\n"
        "compress: {calibration: {traces: bundled:attribution, samples: 1, tokens: 8}}\n"
    )
    assert str(recipe.load(path).all_variants["compressed"].plan.sparsity) == "2:4"
    assert str(recipe.load(path, ["plan.sparsity=1:4"]).all_variants["compressed"].plan.sparsity) == "1:4"


def test_half_a_line_of_brackets_is_half_a_line(tmp_path: Path) -> None:
    """A last row that is no row, however deep, stays for the reader to refuse; one that begins as ours goes."""
    path = tmp_path / "g.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"[" * 100_000)
    artifacts.mend_lines(path, b'{"a": ')
    with pytest.raises(UserError, match=r"g\.jsonl:2: nested"):
        artifacts.read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n{"a": ' + b"[" * 100_000)
    artifacts.mend_lines(path, b'{"a": ')
    assert artifacts.read_jsonl(path) == [{"a": 1}]


def test_an_adapter_of_brackets_is_still_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="an adapter"):
        Model(tmp_path).load()
