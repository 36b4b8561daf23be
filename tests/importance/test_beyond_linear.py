"""Embeddings, norms and logits: gradients and sums against plain references; the attribute stage with every option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference import (
    attributed,
    full_backpropagation,
    layout_of,
    outputs_of,
    relative_error,
    swept,
    tiny_model,
)
from test_engine import WINDOWS
from test_streaming import job, streamed
from tiny import write_traces

from mixprec.importance import streaming
from mixprec.importance.attribute import attribute
from mixprec.importance.engine import Layout
from mixprec.importance.windows import Window
from mixprec.models import weights
from mixprec.models.model import Model
from mixprec.traces import spans, store
from mixprec.traces.spans import AnnotatedTrace


def whole_layout(model: torch.nn.Module) -> Layout:
    return Layout.joined([layout_of(model), Layout.of_outputs(weights.outputs_of(model))])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_gradients_and_sums_are_those_of_plain_passes(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    layout = whole_layout(model)
    norms = 4 if architecture.startswith("gemma") else 2
    assert len(layout.modules) == 3 * 7 + 3 * norms + 3
    work = job(40, 5, WINDOWS)
    found = attributed(model, layout, *work, chunk_tokens=16, batch_tokens=12)
    # Gemma 2's reference has a float32 softmax (eager attention).
    tolerance = 1e-5 if architecture == "gemma2" else 1e-9
    for number in (0, 1, 5):
        reference = full_backpropagation(model, layout, work.tokens, WINDOWS[number])
        for where in layout.slices.values():
            assert relative_error(found.gradients[number, where], reference[where]) < tolerance
    outputs = outputs_of(model, layout, work.tokens)
    sums = torch.cat([work.rows.double() @ outputs[name] for name in layout.modules], dim=1)
    assert relative_error(found.row_sums, sums) < (1e-5 if architecture == "gemma2" else 1e-10)
    empty = streamed(tiny_model(architecture), tmp_path)
    (other,) = swept(empty, whole_layout(empty.model), [work], chunk_tokens=16, batch_tokens=12)
    assert torch.equal(found.row_sums, other.row_sums)
    assert torch.equal(found.gradients, other.gradients)


def test_logits_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    layout = whole_layout(model)
    work = job(40, 5, [Window(0, 4, 30), Window(1, 6, 20)])
    found = attributed(model, layout, *work)
    monkeypatch.setattr("mixprec.importance.engine.HEAD_TOKENS", 7)
    monkeypatch.setattr("mixprec.importance.outputs._HEAD_ROWS", 9)
    again = attributed(model, layout, *work)
    assert relative_error(again.gradients, found.gradients) < 1e-12
    assert relative_error(again.row_sums, found.row_sums) < 1e-12


@pytest.fixture
def annotated(tmp_path: Path) -> list[AnnotatedTrace]:
    write_traces(tmp_path / "traces.jsonl")
    return [spans.char_spans(trace, "paper") for trace in store.load(str(tmp_path / "traces.jsonl"))]


def test_linear_modules_keep_their_artifacts_and_the_rest_has_its_own(
    annotated: list[AnnotatedTrace], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    loaded = Model(tiny_checkpoint).load()
    small = streaming.open_model(Model(tiny_checkpoint), sweep_gb=1e-4)
    assert small.sweep_bytes == 100_000
    out = {name: tmp_path / name for name in ("plain", "beyond", "streamed")}
    presets = ("paper", "released")
    attribute(loaded, annotated, out["plain"], presets=presets, identity="m", resamples=20)
    attribute(loaded, annotated, out["beyond"], presets=presets, identity="m", resamples=20, beyond_linear=True)
    attribute(small, annotated, out["streamed"], presets=presets, identity="m", resamples=20, beyond_linear=True)
    written = {name: {path.name: path.read_bytes() for path in folder.glob("*.*")} for name, folder in out.items()}
    assert sorted(written["plain"]) == ["importance.json", "importance_released.json", "steering.safetensors"]
    assert written["plain"].items() <= written["beyond"].items()
    assert written["streamed"] == written["beyond"]
    beyond = json.loads(written["beyond"]["importance_beyond.json"])
    labels = [row["label"] for row in beyond["modules"]]
    blocks = [f"{n}_{norm}" for n in (1, 2) for norm in ("input_layernorm", "post_attention_layernorm")]
    assert labels == ["embed_tokens", *blocks, "norm", "lm_head"]
    assert beyond["modules"][0]["layer"] is None
    assert beyond["modules"][1]["layer"] == 1
    for entry in beyond["behaviours"].values():
        assert min(entry["scores"]) > 0


def test_turning_it_on_later_leaves_finished_linear_statistics_right(
    annotated: list[AnnotatedTrace], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    loaded = Model(tiny_checkpoint).load()
    attribute(loaded, annotated, tmp_path, presets=["paper"], identity="m", resamples=0)
    before = (tmp_path / "importance.json").read_bytes()
    attribute(loaded, annotated, tmp_path, presets=["paper"], identity="m", resamples=0, beyond_linear=True)
    assert (tmp_path / "importance.json").read_bytes() == before
    assert (tmp_path / "importance_beyond.json").is_file()
