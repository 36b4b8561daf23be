"""The file of generations: nothing is lost, nothing is mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Generation, Sampling
from mixprec.evaluate.generations import GenerationFile, Key, Origin, Record

ORIGIN = Origin("folio", "digest", "model", "paper", Sampling())
ENGINE = {"kind": "transformers", "batch": 4}
MADE = Generation("any", "Hm.\u2028\f\t</think> True", "stop", 7, 5, "prompt")


def filled(path: Path) -> GenerationFile:
    file = GenerationFile(path, ORIGIN)
    for name, seed in (("a", 0), ("a", 1), ("b", 0)):
        file.add(Key(name, seed), MADE, ENGINE)
    return file


def again(path: Path, **changes: Any) -> GenerationFile:
    return GenerationFile(path, ORIGIN._replace(**changes))


def test_what_is_there_is_known_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "folio.jsonl"
    filled(path)
    file = again(path)
    assert file.done == dict.fromkeys([Key("a", 0), Key("a", 1), Key("b", 0)], Record(MADE.output, "stop", 7, 5))
    assert file.left([Key("b", 1), Key("a", 1), Key("c", 0)]) == [Key("b", 1), Key("c", 0)]
    row = json.loads(path.read_text().split("\n")[0])
    assert {"benchmark", "rows", "model", "prompts", "sampling", "engine", "id", "seed", "output"} <= set(row)
    assert row["sampling"] == {"max_new_tokens": 32768, "temperature": 0.6, "top_p": 0.95}


@pytest.mark.parametrize("size", [1, 15, 60, -30, -2])
def test_half_a_line_is_done_again(tmp_path: Path, size: int) -> None:
    path = tmp_path / "folio.jsonl"
    file = filled(path)
    line = path.read_bytes().splitlines(keepends=True)[0].replace(b'"a"', '"ä"'.encode())
    whole = path.read_bytes()
    path.write_bytes(whole + line[:size])
    file = again(path)
    assert len(file.done) == 3
    assert path.read_bytes() == whole
    file.add(Key("c", 0), MADE, ENGINE)
    assert len(again(path).done) == 4


def test_a_whole_last_line_without_its_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "folio.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-1])
    file = again(path)
    file.add(Key("c", 0), MADE, ENGINE)
    assert len(again(path).done) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": "other"}, "rows is 'digest', this run has 'other'"),
        ({"benchmark": "aime_2024"}, "benchmark is 'folio'"),
        ({"model": "quantized"}, "model is 'model', this run has 'quantized'"),
        ({"prompts": "chat"}, "prompts is 'paper'"),
        ({"sampling": Sampling(temperature=1.0)}, "sampling is .*'temperature': 0.6"),
        ({"sampling": Sampling(64)}, "sampling is .*32768"),
    ],
)
def test_other_generations_are_refused_and_kept(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "folio.jsonl"
    filled(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"folio.jsonl:1: {words}.*another --out"):
        again(path, **changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 3}, "'id' is missing or no str"),
        ({"seed": True}, "'seed' is missing or no int"),
        ({"output": None}, "'output' is missing"),
        ({"finish": "eos"}, "finish is 'eos'"),
        ({"tokens": "7"}, "tokens and prompt_tokens"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "folio.jsonl"
    filled(path)
    lines = path.read_text().split("\n")[:-1]
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"folio.jsonl:2: .*{words}"):
        again(path)


def test_generations_that_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "folio.jsonl"
    filled(path)
    path.write_text(path.read_text() + path.read_text().split("\n")[0] + "\n")
    with pytest.raises(UserError, match=r"folio.jsonl:4: question 'a' with seed 0 stands twice"):
        again(path)
