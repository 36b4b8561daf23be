"""Shared fixtures: the paper's data where it is, the embedded model, and tiny decoders built from configurations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixprec.core import environment

environment.settle()  # before torch is imported, as the command line does

import torch
from tiny import write_checkpoint

from mixprec.core import progress
from mixprec.models.load import LoadedModel
from mixprec.models.locate import BUNDLED
from mixprec.models.model import Model


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same numbers whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notices go to standard error, as on the command line: tests read them there. Python alone is quiet."""
    monkeypatch.setattr(progress.console, "quiet", False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the paper's traces, benchmarks and WikiText; MIXPREC_DATA names another place."""
    folder = Path(os.environ.get("MIXPREC_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the paper's data is not at {folder}; set MIXPREC_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The embedded model in float32."""
    return Model(BUNDLED).load()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that knows tiny.TRACES by heart, with a fast tokenizer, in a folder that is only read."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", steps=200)
