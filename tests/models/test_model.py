"""Model: one value that is read when it is asked, held once, and whose files belong together."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    model = Model(tmp := folder / "nowhere")
    assert (model.id, repr(model)) == (str(tmp), f"Model('{tmp}', dtype='float32', device='cpu')")
    (folder / "model.safetensors").unlink()
    model = Model(folder)
    assert model.decoder.layers == 2 and model.encoder("a").ids
    with pytest.raises(UserError, match="there are no weights"):
        _ = model.source


def test_the_whole_model_is_held_once_until_it_is_released(folder: Path) -> None:
    model = Model(folder)
    first = model.load()
    assert model.load() is first
    model.release()
    again = model.load()
    assert again is not first
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


def test_computed_otherwise_it_is_another_value_that_knows_the_same_files(folder: Path) -> None:
    model = Model(folder)
    identity, held = model.identity, model.load()
    half = model.computed(dtype="bfloat16")
    assert model.computed(dtype="float32") is model is model.on_one_device
    assert half.load().model.dtype == torch.bfloat16 and model.load() is held
    assert half.identity == identity


def test_what_opens_a_packed_model_leaves_its_configuration(folder: Path) -> None:
    """The head of a model that was loaded stays tied, and it can be opened block by block afterwards."""
    model = Model(folder)
    before = model.checkpoint.shapes.to_dict()
    model.load()
    model.open_blocks()
    assert model.checkpoint.shapes.to_dict() == before


def _weights(folder: Path) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def _config(folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(path.read_text() + "\n")
    return path


def _template(folder: Path) -> Path:
    path = folder / "chat_template.jinja"
    path.write_text("{{ messages }}")
    return path


def _gone(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.unlink()
    return path


USES: dict[str, Callable[[Model], Any]] = {
    "identity": lambda model: model.identity,
    "load": lambda model: model.load(),
    "blocks": lambda model: model.open_blocks(),
    "original": lambda model: model.original,
    "check": lambda model: model.check(),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("first", ["identity", "load", "blocks"])
@pytest.mark.parametrize("change", [_weights, _config, _template, _gone])
def test_files_that_change_while_a_model_is_in_use(
    folder: Path, first: str, use: str, change: Callable[[Path], Path]
) -> None:
    model = Model(folder)
    USES[first](model)
    USES[use](model)
    changed = change(folder)
    with pytest.raises(UserError, match=rf"{changed}: changed while the model was in use, .* start again"):
        USES[use](model)
    (folder / "tokenizer.json").exists() and USES[use](Model(folder))  # as a new value they are read as they are


@pytest.mark.parametrize("first", ["config", "encoder", "tokenizer", "decoder"])
def test_files_that_change_after_a_part_was_read(folder: Path, first: str) -> None:
    """What was read of old files isn't taken for a part of new ones."""
    model = Model(folder)
    getattr(model, first)
    changed = _config(folder)
    for use in USES.values():
        with pytest.raises(UserError, match=rf"{changed}: changed while the model was in use"):
            use(model)


def test_threads_load_a_model_once(folder: Path) -> None:
    model, loaded = Model(folder), []
    threads = [threading.Thread(target=lambda: loaded.append(model.load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4 and all(each is loaded[0] for each in loaded)


def test_copies_hold_no_weights(folder: Path) -> None:
    model = Model(folder)
    identity, loaded = model.identity, model.load()
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._loaded is None and other.identity == identity
    assert model.load() is loaded


def test_what_is_no_part_of_a_model_may_change(folder: Path) -> None:
    model = Model(folder)
    identity = model.identity
    (folder / "README.md").write_text("A card.")
    assert model.identity == identity


def test_a_cache_in_which_nothing_can_be_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path / "cache"))
    original = Model(tiny_checkpoint)
    spec = PlanSpec.model_validate({"default": "keep", "rules": [{"match": "*_q", "format": "q8_0"}]})
    plan = build_plan(spec, original.decoder, original.id, "ggml", None)
    compress(original, plan, tmp_path / "gguf", format=checkpoint_format("gguf"))
    model = next((tmp_path / "gguf").glob("*.gguf"))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        with pytest.raises(UserError, match=r"can't be written \(Read-only .*\); choose .* with MIXPREC_CACHE"):
            _ = Model(model).folder
    identity = Model(model).identity
    with monkeypatch.context() as patched:  # what is there already is used
        patched.setattr(Path, "mkdir", refuse)
        assert Model(model).identity == identity
