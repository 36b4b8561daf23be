"""A tiny model with its candidates, and a budget on it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mixprec.compress.candidatefiles import Candidates
from mixprec.models.decoder import Decoder
from mixprec.models.load import LoadedModel
from mixprec.models.model import Model
from mixprec.plan.budget import Problem
from mixprec.plan.sensitivity import Sensitivity
from mixprec.sensitivity.passages import Scored
from mixprec.walk import blocks

TEXTS = ("w2g16", "w3g16", "w4g16")


class Made(NamedTuple):
    """A trained tiny model, its candidates, passages with two targets, and a budget of 3.9 effective bits on it."""

    folder: Path
    inventory: Decoder
    candidates: Candidates
    passages: list[Scored]
    problem: Problem

    def open(self) -> blocks.Blocks:
        return Model(self.folder).open_blocks()

    def load(self) -> LoadedModel:
        return Model(self.folder).load()

    def table(self) -> Sensitivity:
        """Damage that knows nothing but the bits."""
        scores = {m.address: {t: 1e-3 * 4.0 ** -int(t[1]) for t in TEXTS} for m in self.inventory.linears}
        data = {"model": "tiny", "identity": "x", "scorer": "fisher", "method": "gptq", "scores": scores}
        return Sensitivity.model_validate(data)
