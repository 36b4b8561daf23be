from __future__ import annotations

import pytest
import tiny
import torch
from planning import TEXTS, Made

from mixprec.calibration.data import Calibration
from mixprec.compress import candidates as solving
from mixprec.compress.options import SolveOptions
from mixprec.core import artifacts
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.budget import budget_problem
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.schema import Treatment
from mixprec.sensitivity.passages import Scored


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("joint") / "model", steps=60)
    inventory = decoder_of(load_config(str(folder)))
    ids = torch.randint(2, 300, (4, 32), generator=torch.Generator().manual_seed(1))
    calibration = Calibration(ids, None, {}, artifacts.fingerprint(ids.tolist()))
    treatments = {text: Treatment.model_validate({"format": text, "method": "gptq"}) for text in TEXTS}
    opened = Model(folder).open_blocks(("embedding", "norm"))
    candidates = solving.make(
        opened, "x", inventory, treatments, calibration, SolveOptions(), tmp_path_factory.mktemp("candidates")
    )
    words = Model(folder).load().tokenizer
    passages = []
    for number, trace in enumerate(tiny.TRACES):
        tokens = torch.tensor(words(str(trace["output"]))["input_ids"][: 40 + 3 * number])
        every = torch.ones(len(tokens) - 1)
        passages.append(Scored(tokens, {"all": every, "backtracking": (torch.arange(len(every)) % 3 == 0).float()}))
    spec = BudgetSpec.model_validate({"effective_bits": 4.0, "candidates": TEXTS, "tie": "fused"})
    return Made(folder, inventory, candidates, passages, budget_problem(spec, inventory, "gptq"))
