"""Sources on disk, tokenizers with and without BOS, and loading with a recipe's ``locate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from mixprec import recipe
from mixprec.calibration import data
from mixprec.calibration.spec import CalibrationSpec
from mixprec.models.encoding import Encoder

WORDS = tiny.tokenizer(bos=False)
WITH_BOS = tiny.tokenizer(bos=True)

Load = Callable[..., data.Calibration]


@pytest.fixture(params=[False, True], ids=["plain", "bos"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Tokenizers that put nothing or <s> in front of a text."""
    return WITH_BOS if request.param else WORDS


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a calibration spec; ``data:`` is tmp_path."""

    def call(words: Any = WORDS, context: int = 1024, **spec: Any) -> data.Calibration:
        return data.load(
            CalibrationSpec.model_validate(spec),
            Encoder(words, len(words)),
            lambda source: recipe.locate(source, tmp_path),
            context,
        )

    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of numbered sentences, each different, so that no two windows are the same."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Sentence {n} has {n * n} apples, not {n + 7}.\n" for n in range(120)), encoding="utf-8")
    return path


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """tiny.TRACES in a file."""
    return tiny.write_traces(tmp_path / "traces.jsonl")
