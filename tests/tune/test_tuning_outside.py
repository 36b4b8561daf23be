"""Embedding and head are tuned as the blocks are: their scales move, their codes stay, tied ones by both uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_checkpoint

from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.compress.stream import compress
from mixprec.models.model import Model
from mixprec.numerics.groupwise import dequantize
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan
from mixprec.tune.options import TuneOptions
from mixprec.tune.packed import tune_packed
from mixprec.tune.solved import SolvedTuning
from mixprec.tune.tuning import Lessons, Tuning

EXACT = TuneOptions(dtype="float32", epochs=4, rate=0.005, norm_rate=0.0025)


def planned(model: Model, **rules: str) -> Plan:
    said = [{"match": match, "format": format} for match, format in rules.items()]
    return build_plan(PlanSpec.model_validate({"default": "keep", "rules": said}), model.decoder, model.id, "rtn")


@pytest.mark.parametrize("tied", [True, False])
def test_what_was_solved_is_tuned(tmp_path: Path, lessons: Lessons, tied: bool) -> None:
    model = Model(write_checkpoint(tmp_path / "source", steps=60, tie_word_embeddings=tied))
    plan = planned(model, embedding="w3g16", **({} if tied else {"head": "w3g16"}))
    tuning = SolvedTuning(lessons, EXACT)
    compress(model, plan, tmp_path / "plain", format=DENSE)
    compress(model, plan, tmp_path / "tuned", format=DENSE, tune=tuning)
    assert tuning.course is not None
    assert tuning.course.best[1] < 0.9 * tuning.course.before
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "tuned"))
    for linear in model.decoder.outside:
        was, now = before[linear.weight_name].view(-1, 16), after[linear.weight_name].view(-1, 16)
        assert not torch.equal(was, now)
        step = (now / was).nan_to_num(0)  # one number for each group: codes are what they were
        assert torch.allclose(step, step.abs().amax(1, keepdim=True) * (was != 0), rtol=1e-4, atol=1e-6)


def test_a_packed_head_is_tuned(tmp_path: Path, lessons: Lessons) -> None:
    source = write_checkpoint(tmp_path / "source", steps=60, tie_word_embeddings=False)
    model, form = Model(source), checkpoint_format("compressed-tensors")
    compress(model, planned(model, head="w3g16", embedding="w4g16"), tmp_path / "packed", format=form)
    tune_packed(Tuning(lessons, EXACT), Model(tmp_path / "packed"), model, tmp_path / "tuned")
    was, now = open_checkpoint(tmp_path / "packed"), open_checkpoint(tmp_path / "tuned")
    for linear in model.decoder.outside:
        first, second = was.quantized(linear), now.quantized(linear)
        assert torch.equal(first.codes, second.codes)
        assert not torch.equal(first.grid.scales, second.grid.scales)
        format = now.layouts[linear.address].format
        assert torch.equal(now.weight(linear), dequantize(second, format, torch.float32))  # type: ignore[arg-type]
