"""Seals: a bit of an artifact that changes changes no result in silence, wherever the artifact is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixprec.core import artifacts, seals
from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Generation, Sampling
from mixprec.evaluate.generations import GenerationFile, Key, Origin
from mixprec.importance import artifact
from mixprec.importance.tensorfile import Shape, create
from mixprec.traces import spans
from mixprec.traces.store import Trace

DATA = {"float": 0.1, "ü": [1, 1.0, None, True, {"a": 1e-300}], "text": "a\u2028\U0001f642\\n", "tuple": (1, 2)}


def flips(path: Path, step: int = 1) -> Iterator[None]:
    """Every ``step``-th bit of the file turned round, one after the other."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), step):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        yield
    path.write_bytes(whole)


def refused_or_equal(path: Path, read: Callable[[], Any], same: Callable[[Any], bool], step: int = 1) -> int:
    """How many changes were refused; the others must not change what is read."""
    refused = 0
    for _ in flips(path, step):
        try:
            assert same(read())
        except UserError as problem:
            assert path.name in str(problem)
            refused += 1
    assert same(read())
    return refused


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artifacts.write_json(path, DATA)
    expected = json.loads(json.dumps(DATA))
    assert artifacts.read_json(path) == expected
    # A changed name of the seal's key is one more key, and white space is none of the content.
    refused = refused_or_equal(path, lambda: artifacts.read_json(path), lambda found: expected.items() <= found.items())
    assert refused > 0.8 * 8 * path.stat().st_size


def test_layout_is_no_content_and_without_its_seal_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"a": 0.5, "b": "ü"})
    data = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(data.items())), indent=None))
    assert artifacts.read_json(path) == {"a": 0.5, "b": "ü"}
    data["a"] = 0.6
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"a\.json: was edited or damaged .* remove mixprec_sha256 and mixprec_schema"):
        artifacts.read_json(path)
    path.write_text(json.dumps(seals.content(data)))
    assert artifacts.read_json(path) == {"a": 0.6, "b": "ü"}


def test_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    artifacts.save_tensors(path, {"x": torch.arange(5.0), "y": torch.ones(3, dtype=torch.int64)}, {"stamp": "s"})

    def same(found: Any) -> bool:
        return found[0]["x"].tolist() == [0, 1, 2, 3, 4] and found[0]["y"].tolist() == [1, 1, 1]

    refused = refused_or_equal(path, lambda: artifacts.load_tensors(path), same)
    assert refused > 0.5 * 8 * path.stat().st_size
    assert artifacts.is_made(path, "s") and not artifacts.is_made(path, "t")


def test_tensors_that_were_written_piece_by_piece(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "00000.safetensors"
    with create(path, {"a": Shape(torch.float64, (2, 3))}, {"stamp": "s"}) as file:
        file.write("a", torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
        file.add("a", 1, 0, torch.ones(3, dtype=torch.float64))
    assert artifacts.load_tensors(path)[0]["a"].tolist() == [[0, 1, 2], [4, 5, 6]]
    assert artifacts.is_made(path, "s")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert not artifacts.is_made(path, "s")
    assert "00000.safetensors: was changed or damaged since it was written; made again" in capsys.readouterr().err


def test_files_of_other_programs_need_no_seal(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with artifacts.open_tensors(tmp_path / "a.safetensors") as file:
        assert file.get_tensor("x").tolist() == [1, 1]
    (tmp_path / "a.jsonl").write_text('{"id": "x"}\n')
    assert artifacts.read_jsonl(tmp_path / "a.jsonl") == [{"id": "x"}]


def test_spans(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    traces = [Trace("a", "", "prompt ", "wait, no."), Trace("b", "d", "prompt ", "so it is")]
    made = [spans.AnnotatedTrace(trace, [spans.CharSpan("backtracking", 7, 12)], {"low": 1}) for trace in traces]
    spans.save_spans(path, made)

    def same(found: list[spans.AnnotatedTrace]) -> bool:
        return [(each.trace.text, each.spans) for each in found] == [(each.trace.text, each.spans) for each in made]

    assert refused_or_equal(path, lambda: spans.load_spans(path), same, step=3) > path.stat().st_size


def test_generations(tmp_path: Path) -> None:
    path, origin = tmp_path / "folio.jsonl", Origin("folio", "rows", "model", "paper", Sampling(8, 0.6, 0.95))
    file = GenerationFile(path, origin)
    for name in ("a", "b"):
        file.add(Key(name, 0), Generation(name, f"The answer is {name}.", "stop", 5, 2, "prompt"), {"engine": "none"})
    expected = file.done

    def read() -> dict[Key, Any]:
        whole = path.read_bytes()
        try:
            return GenerationFile(path, origin).done
        finally:
            path.write_bytes(whole)  # half a line at the end is taken away

    def same(found: dict[Key, Any]) -> bool:
        """What is lost at the end is generated again."""
        return found.items() <= expected.items()

    assert refused_or_equal(path, read, same, step=3) > path.stat().st_size


def test_importance_and_quality(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    module = {"address": "model.layers.0.mlp.up_proj", "label": "1_up", "layer": 1, "kind": "up"}
    data = {
        "schema_version": artifacts.SCHEMA_VERSION,
        "modules": [module],
        "behaviours": {"backtracking": {"spans": 2, "traces": 1, "scores": [0.125]}},
    }
    artifacts.write_json(path, data)
    refused_or_equal(
        path, lambda: artifact.scores_of(artifact.load(path)), lambda found: found == artifact.scores_of(data)
    )
    quality = tmp_path / "quality.json"
    artifacts.write_json(quality, {module["address"]: {"scale": 1.5}})
    refused_or_equal(quality, lambda: artifact.awq_scales(quality), lambda found: found == {"1_up": 1.5})
    assert artifacts.read_json(quality).keys() == {module["address"]}


def test_rows_of_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "0.jsonl"
    for number in range(3):
        artifacts.append_row(path, {"stamp": "now", "number": number, "value": 0.5})
    with path.open("a") as file:
        file.write('{"number": 3, "va')  # a kill
    artifacts.append_row(path, {"stamp": "before", "number": 4, "value": 0.5})
    artifacts.append_row(path, {"stamp": "now", "number": 5, "value": 0.5})
    content = path.read_text().split("\n")
    content[1] = content[1].replace("0.5", "0.6")
    path.write_text("\n".join(content))
    assert [row["number"] for row in artifacts.rows_left(path, "now")] == [0, 2, 5]
    assert "0.jsonl:2: was changed or damaged since it was written; made again" in capsys.readouterr().err
