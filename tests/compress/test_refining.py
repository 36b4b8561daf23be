"""The seam between solvers and tuning: what a refinement is given, and what becomes of what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_block import calibrating
from transformers import AutoModelForCausalLM

from mixprec.compress.gptaq import gptaq
from mixprec.compress.gptq import gptq
from mixprec.compress.live import compress_live
from mixprec.compress.refining import Refined, SolvedBlock
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.models.weights import weight_of
from mixprec.numerics import storage
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import Quantized, dequantize
from mixprec.numerics.hessian import factorize
from mixprec.plan.schema import Plan
from mixprec.walk.samples import FULL

Make = Callable[..., Path]
Planner = Callable[..., Plan]


class Halving:
    """Halves the scales of every module of a block, and keeps what it was given."""

    settings: Mapping[str, object] = {"refine": "halving"}

    def __init__(self, only: int | None = None) -> None:
        self.only, self.seen = only, []  # type: ignore[var-annotated]

    def __call__(self, solved: SolvedBlock) -> Refined:
        entering = solved.samples.rows(range(6))
        with torch.no_grad():
            own = solved.block(entering, **solved.samples.contexts.any(solved.number, len(entering)))
        weights = {m.address: weight_of(solved.block, m).clone() for group in solved.groups for m in group}
        self.seen.append((solved, entering, own, solved.samples.rows(range(6), FULL), weights))
        if self.only not in (None, solved.number):
            return Refined({}, 1.0)
        made = {}
        for address, found in solved.solved.items():
            assert isinstance(found.quantized, Quantized)
            grid = found.quantized.grid._replace(scales=found.quantized.grid.scales / 2)
            now = found.quantized._replace(grid=grid)
            restored = storage.dequantize(now, solved.treatments[address].format, found.restored.dtype)
            made[address] = found._replace(quantized=now, restored=restored)
        return Refined(made, 0.5)


def dense(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("memory_gb", [4.0, 1e-5])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_refinement_stands_between_the_blocks_of_both_models(
    checkpoint: Make, planner: Planner, tmp_path: Path, method: str, memory_gb: float
) -> None:
    source, calibration, halving = checkpoint(), calibrating(), Halving()
    model = Model(source)
    plan = planner(source, "w3g16", method, last_up="keep")
    reports = compress(model, plan, tmp_path / "out", calibration=calibration, refine=halving, memory_gb=memory_gb)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        right = original(calibration.tokens, use_cache=False, output_hidden_states=True).hidden_states
        ours = made(calibration.tokens, use_cache=False, output_hidden_states=True).hidden_states
    first, second = halving.seen
    torch.testing.assert_close(first[1], right[0])
    torch.testing.assert_close(first[3], right[1])
    torch.testing.assert_close(second[1], ours[1])  # behind the refined block, not the solved one
    for report in reports.values():
        assert report.tuned == (0.5 if report.method else None)
    kept = "model.layers.1.mlp.up_proj"
    assert kept in second[4]
    assert kept not in second[0].solved


def test_weights_and_errors_are_those_of_the_refined_modules(
    checkpoint: Make, planner: Planner, tmp_path: Path
) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16", "gptq")
    plain = compress(Model(source), plan, tmp_path / "plain", calibration=calibrating())
    told = []
    halved = compress(
        Model(source),
        plan,
        tmp_path / "out",
        calibration=calibrating(),
        refine=Halving(only=1),
        on_module=lambda address, report: told.append((address, report)),
    )
    before, after = dense(tmp_path / "plain"), dense(tmp_path / "out")
    for address in plan.changed:
        one, other = before[f"{address}.weight"], after[f"{address}.weight"]
        assert torch.equal(other, one / 2 if ".1." in address else one)
        assert halved[address].output_error == plain[address].output_error
        if ".0." in address:
            assert halved[address] == plain[address]._replace(tuned=1.0)
        else:
            assert halved[address].relative_error > plain[address].relative_error
    assert dict(told) == halved
    assert len(told) == len(halved)


def test_a_killed_run_is_continued_with_refined_blocks(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16", "gptaq")
    compress(Model(source), plan, tmp_path / "whole", calibration=calibrating(), refine=Halving())

    class Killed(Halving):
        def __call__(self, solved: SolvedBlock) -> Refined:
            if solved.number == 1:
                raise KeyboardInterrupt
            return super().__call__(solved)

    with pytest.raises(KeyboardInterrupt):
        compress(Model(source), plan, tmp_path / "out", calibration=calibrating(), refine=Killed())
    again = Halving()
    reports = compress(Model(source), plan, tmp_path / "out", calibration=calibrating(), refine=again)
    assert [solved.number for solved, *_ in again.seen] == [1]
    assert {report.tuned for report in reports.values()} == {0.5}
    whole, found = dense(tmp_path / "whole"), dense(tmp_path / "out")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_other_settings_make_blocks_again(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16", "gptq")

    class Killed(Halving):
        def __call__(self, solved: SolvedBlock) -> Refined:
            if solved.number == 1:
                raise KeyboardInterrupt
            return super().__call__(solved)

    with pytest.raises(KeyboardInterrupt):
        compress(Model(source), plan, tmp_path / "out", calibration=calibrating(), refine=Killed())
    again = Halving()
    again.settings = {"refine": "otherwise"}
    compress(Model(source), plan, tmp_path / "out", calibration=calibrating(), refine=again)
    assert [solved.number for solved, *_ in again.seen] == [0, 1]


def test_without_data_nothing_is_refined(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    with pytest.raises(UserError, match="tuning blocks looks at their outputs and needs calibration data"):
        compress(Model(source), planner(source, "w3g16"), tmp_path / "out", refine=Halving())


def test_a_loaded_model_gets_what_a_checkpoint_gets(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16", "gptaq")
    compress(Model(source, dtype="bfloat16"), plan, tmp_path / "out", calibration=calibrating(), refine=Halving())
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    reports = compress_live(model, plan, calibration=calibrating(), refine=Halving())
    stored = dense(tmp_path / "out")
    assert all(torch.equal(model.get_submodule(each).weight, stored[f"{each}.weight"]) for each in plan.changed)
    assert {report.tuned for report in reports.values()} == {0.5}


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("drifting", [False, True])
def test_rests_are_what_rounding_took_from_compensated_weights(act_order: bool, drifting: bool) -> None:
    """(W − Ŵ) U⁻¹ has an error's share of the loss in each column; U_jj of it is what rounding column j took."""
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 24, generator=random, dtype=torch.float64)
    inputs = torch.randn(200, 24, generator=random, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    factor = factorize(inputs.T @ inputs / 200, act_order=act_order, group_size=8)
    format, rests = Format(3, 8), torch.empty(24, 5, dtype=torch.float64)
    order = torch.arange(24) if factor.order is None else factor.order
    aim = weight[:, order]
    if drifting:
        drift = torch.randn(24, 24, generator=random, dtype=torch.float64) * 0.1
        found = gptaq(weight, factor, format, drift, rests=rests)
        payments = (drift[order[:, None], order] @ factor.upper.T).triu(1) @ factor.upper
        aim = aim + 0.25 * aim @ payments
    else:
        found = gptq(weight, factor, format, rests=rests)
    rounded = dequantize(found, format, torch.float64)[:, order]
    expected = (aim - rounded) @ torch.linalg.inv(factor.upper) * factor.upper.diagonal()
    torch.testing.assert_close(rests.T[:, order], expected)
