"""A run holds its original once, whatever its stages do with it, and every verb reads the revision that it is given."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from mixprec import pipeline, recipe
from mixprec.cli import app
from mixprec.core import hub
from mixprec.models import load
from mixprec.models.model import Model


def test_stages_share_one_original_and_leave_it_as_it_was(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = ["w3g16", "w4g16"]
    budget = {"effective_bits": 6, "candidates": [*formats, "keep"]}
    exchange = {"samples": 2, "proposals": 2, "margin": 0}
    path = tiny.write_recipe(
        tmp_path / "r.yaml",
        tiny_checkpoint,
        tiny.write_traces(tmp_path / "traces.jsonl"),
        importance={"preset": "paper", "resamples": 0},
        compress={
            "method": "gptq",
            "calibration": {"traces": str(tmp_path / "traces.jsonl"), "samples": 6, "tokens": 24},
        },
        sensitivity={"scorer": "fisher", "formats": formats, "samples": 2},
        ablation={"each": "*_up", "sets": {"all": "*_*"}, "formats": formats},
        variants={
            "original": {"plan": {"default": "keep"}},
            "spent": {"plan": {"budget": {**budget, "exchange": exchange}}},
        },
    )
    loaded: list[str] = []
    real_load, real_release = load.load_whole, Model.release
    released = 0

    def counted(name: str, *rest: Any) -> Any:
        loaded.append(name)
        return real_load(name, *rest)

    def compared(model: Model) -> None:
        nonlocal released
        if model.id == str(tiny_checkpoint) and model._loaded is not None:
            fresh = real_load(model.id, Model(model.id).checkpoint, model.encoder, torch.float32, "cpu")
            for own, wanted in zip(model._loaded.model.parameters(), fresh.model.parameters(), strict=True):
                assert torch.equal(own, wanted) and not own.requires_grad
            released += 1
        real_release(model)

    monkeypatch.setattr("mixprec.models.load.load_whole", counted)
    monkeypatch.setattr(Model, "release", compared)
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    pipeline.Run(recipe.load(path), path.read_text(), "r", tmp_path / "run", None).run()
    spent = tmp_path / "run" / "variants" / "spent"
    assert (spent / "exchange" / "exchange.json").is_file()
    assert loaded == [str(tiny_checkpoint), str(spent / "checkpoint")]
    assert released == 1
    chosen = recipe.load(path).model_copy(update={"ablation": None})
    again = pipeline.Run(chosen, path.read_text(), "r", tmp_path / "run", None)
    monkeypatch.setattr(Model, "open_blocks", None)
    again.run()
    assert len(loaded) == 2  # a finished run needs no weights


FIRST, SECOND = "1" * 40, "2" * 40
NAME = "owner/tiny"


@pytest.fixture
def cached(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on the hub with two commits, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    folder = tmp_path / "hub" / "models--owner--tiny"
    for name, commit in (("main", FIRST), ("dev", SECOND)):
        shutil.copytree(tiny_checkpoint, folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / name).write_text(commit)
    hub.forget()


VERBS = {
    "trace": ["trace", "prompts.jsonl", "--max-new-tokens", "2", "--model", NAME, "--revision", "dev"],
    "attribute": ["attribute", "spans.jsonl", "--resamples", "0", "--model", NAME, "--revision", "dev"],
    "streamed": ["attribute", "spans.jsonl", "--resamples", "0", "--stream", "--model", NAME, "--revision", "dev"],
    "sensitivity": [
        "sensitivity", "--text", "text.txt", "--samples", "2", "--tokens", "16", "--scored", "1", "--format", "w4g16",
        "--model", NAME, "--revision", "dev",
    ],
    "evaluate": [
        "evaluate", NAME, "--revision", "dev", "--reference", NAME, "--reference-revision", "dev", "--text", "text.txt",
        "--text-tokens", "16",
    ],
    "imatrix": ["imatrix", "--text", "text.txt", "--samples", "2", "--tokens", "16", "--model", NAME, "--revision",
                "dev"],
}  # fmt: skip


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("verb", list(VERBS))
def test_verbs_read_the_revision_that_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "There were six apples."}\n')
    runner = CliRunner()
    assert runner.invoke(app, ["annotate", str(traces), "--out", "spans.jsonl"]).exception is None
    opened: set[str] = set()
    for name in ("load", "open_blocks"):
        real = getattr(Model, name)

        def watched(model: Model, *rest: Any, real: Any = real) -> Any:
            opened.add(model.folder.name)
            return real(model, *rest)

        monkeypatch.setattr(Model, name, watched)
    done = runner.invoke(app, [*VERBS[verb], "--out", f"out{'.gguf' * (verb == 'imatrix')}"])
    assert done.exception is None, done.output
    assert opened == {SECOND}
