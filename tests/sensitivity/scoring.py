from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from mixprec.calibration.data import Calibration
from mixprec.compress.candidatefiles import Candidates
from mixprec.compress.options import SolveOptions
from mixprec.core import artifacts
from mixprec.models.decoder import Decoder
from mixprec.models.model import Model
from mixprec.plan.schema import Treatment
from mixprec.sensitivity.passages import Scored
from mixprec.walk import blocks

TREATMENTS = {
    "w2g16": Treatment(format="w2g16", method="gptq"),
    "w3g16": Treatment(format="w3g16", method="gptq"),
    "0.5": Treatment(format="keep", sparsity="0.5", method="sparsegpt"),
}
OPTIONS = SolveOptions()


def calibrating(samples: int = 6, tokens: int = 20) -> Calibration:
    ids = torch.randint(2, 300, (samples, tokens), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, None, {"made": "up"}, artifacts.fingerprint(ids.tolist()))


def scored(count: int = 3, tokens: int = 14) -> list[Scored]:
    """Passages of different lengths with two targets: all tokens, and every third one."""
    found = []
    for number in range(count):
        ids = torch.randint(2, 300, (tokens + number,), generator=torch.Generator().manual_seed(50 + number))
        every = torch.ones(len(ids) - 1)
        found.append(Scored(ids, {"all": every, "backtracking": (torch.arange(len(ids) - 1) % 3 == 0).float()}, number))
    return found


class Tiny(NamedTuple):
    folder: Path
    inventory: Decoder
    candidates: Candidates

    def open(self) -> blocks.Blocks:
        return Model(self.folder).open_blocks()

    @property
    def addresses(self) -> list[str]:
        return [module.address for module in self.inventory.linears]
