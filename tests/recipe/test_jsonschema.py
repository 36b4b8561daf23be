"""The JSON Schema that editors check recipes by, against the recipes and against what mixprec itself refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema as reader
import pytest

from mixprec import recipe as recipes
from mixprec.core import parsing
from mixprec.recipe import jsonschema
from mixprec.recipe.schema import Recipe

KNOWN = recipes.catalogue()
FOLDER = KNOWN["quickstart"].parent
CHECK = reader.Draft202012Validator(jsonschema.schema())


def data(path: Path) -> Any:
    return parsing.parse_yaml(path.read_text(encoding="utf-8"))


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a recipe whose keys are ours: not the names of variants, nor what selectors and weights name."""
    if isinstance(value, dict):
        yield value
        for key, each in value.items():
            own = key in ("variants", "sets", "engine_settings", "weights", "pin", "behaviours")
            for part in each.values() if own and isinstance(each, dict) else [each]:
                yield from mappings(part)
    elif isinstance(value, list):
        for each in value:
            yield from mappings(each)


def test_the_file_beside_the_recipes_is_the_schema() -> None:
    written = json.loads((FOLDER / jsonschema.FILE).read_text(encoding="utf-8"))
    assert written == jsonschema.schema(), f"run mixprec schema --out recipes/{jsonschema.FILE}"
    CHECK.check_schema(written)


@pytest.mark.parametrize("name", KNOWN)
def test_recipes_name_the_schema_and_keep_it(name: str) -> None:
    CHECK.validate(data(KNOWN[name]))
    second = KNOWN[name].read_text(encoding="utf-8").splitlines()[1]
    assert (KNOWN[name].parent / second.removeprefix(jsonschema.MARK)).resolve() == (FOLDER / jsonschema.FILE).resolve()


@pytest.mark.parametrize("name", ["quickstart", "budget_smollm2", "benchmarks_smollm2"])
def test_a_key_that_is_none_is_marked_wherever_it_stands(name: str) -> None:
    count = len(list(mappings(data(KNOWN[name]))))
    for number in range(count):
        changed = copy.deepcopy(data(KNOWN[name]))
        list(mappings(changed))[number]["no_such_key"] = 1
        assert not CHECK.is_valid(changed), list(mappings(changed))[number]
        with pytest.raises(ValueError, match=r"no_such_key|neither|source|budget"):
            Recipe.model_validate(changed)


@pytest.mark.parametrize(
    "part",
    [
        {"plan": {"default": 3}},
        {"plan": {"default": "w3g64", "method": "gtpq"}},
        {"plan": {"default": "w3g64", "sparsity": [0.5]}},
        {"compress": {"calibration": {"samples": 3}}},
        {"compress": {"calibration": {"text": "a.txt", "traces": "b.jsonl"}}},
        {"evaluate": {"benchmarks": ["aime"]}},
        {"checkpoint": {"format": "ggml"}},
    ],
)
def test_values_that_mean_nothing_are_marked(part: dict[str, Any]) -> None:
    assert not CHECK.is_valid({"model": {"id": "m"}, "plan": {"default": "keep"}} | part)


@pytest.mark.parametrize(
    "part",
    [
        {"plan": {"default": "w3g64", "sparsity": 0.5, "rules": [{"match": ["1_q", "*_up"], "sparsity": "2:4"}]}},
        {"plan": {"default": "keep", "rules": [{"match": {"random": "last_mlp", "seed": 1}, "format": "w3g64"}]}},
        {"compress": {"calibration": {"sources": [{"text": "a.txt"}, {"traces": "b.jsonl", "share": 2}]}}},
        {"compress": {"calibration": {"dataset": "owner/name", "revision": "0" * 40, "samples": 3}}},
        {"evaluate": {"benchmarks": [{"name": "aime_2024", "source": "a.jsonl"}, "folio"], "seeds": [1]}},
        {"checkpoint": {"runtime": "vllm", "version": 0.33}},
    ],
)
def test_what_is_understood_is_not_marked(part: dict[str, Any]) -> None:
    given = {"model": {"id": "m"}, "plan": {"default": "keep"}} | part
    CHECK.validate(given)
    Recipe.model_validate(given)


def test_a_copy_names_the_schema_where_it_lies(tmp_path: Path) -> None:
    text = jsonschema.pointing_to(KNOWN["paper/table3_llama_8b"].read_text(encoding="utf-8"), FOLDER / jsonschema.FILE)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert f"{jsonschema.MARK}{FOLDER.as_posix()}/{jsonschema.FILE}" in text.splitlines()
    assert recipes.load(tmp_path / "mine.yaml") == recipes.load(KNOWN["paper/table3_llama_8b"])
