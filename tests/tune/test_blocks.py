"""Blocks tuned by what they put out: against whole models, never for the worse, and the same whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mixprec.calibration.data import Calibration
from mixprec.compress.live import compress_live
from mixprec.compress.module import ModuleReport
from mixprec.compress.refining import Refined, SolvedBlock
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.models.weights import weight_of
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.tune import blocks
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.tune.blocks import BlockTuner

OPTIONS = TuneBlocks(steps=24, validation=4, checks=3, reach=0.3, rate=0.01, dtype="float32")


def calibrating(samples: int = 12, weights: Tensor | None = None) -> Calibration:
    ids = torch.randint(2, 300, (samples, 16), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, weights, {}, artifacts.fingerprint(ids.tolist()))


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., dict[str, ModuleReport]]:
    """Compress a tiny model to a folder of this name."""

    def make(
        name: str,
        method: Any = "gptq",
        format: str = "w3g16",
        *,
        architecture: str = "llama",
        refine: Any = None,
        options: TuneBlocks | None = OPTIONS,
        calibration: Calibration | None = None,
        sparsity: str | None = None,
        **more: Any,
    ) -> dict[str, ModuleReport]:
        source = tmp_path / architecture
        if not source.exists():
            tiny.write_checkpoint(source, architecture, steps=20)
        model, calibration = Model(source), calibration or calibrating()
        spec = PlanSpec.model_validate({"default": format, "sparsity": sparsity})
        plan = build_plan(spec, model.decoder, model.id, method)
        if refine is None and options is not None:
            refine = BlockTuner(options, calibration)
        return compress(model, plan, tmp_path / name, calibration=calibration, refine=refine, **more)

    return make


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@torch.no_grad()
def states(folder: Path, tokens: Tensor) -> Tensor:
    """What leaves the first block."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: Tensor = model(tokens, use_cache=False, output_hidden_states=True).hidden_states[1]
    return found


@pytest.mark.parametrize(
    ("architecture", "method", "format"),
    [
        ("llama", "gptq", "w3g16_asym"),
        ("qwen3", "gptaq", "w3g16"),
        ("gemma2", "rtn", "w4g8"),
        ("llama", "awq", "w3g16_asym"),
        ("llama", "anyk", "any3g16"),
        ("llama", "ggml", "q4_1"),
    ],
)
def test_the_error_that_is_told_is_that_of_what_is_stored(
    made: Callable[..., Any], tmp_path: Path, architecture: str, method: str, format: str
) -> None:
    made("plain", method, format, architecture=architecture, options=None)
    reports = made("tuned", method, format, architecture=architecture)
    (ratio,) = {report.tuned for address, report in reports.items() if ".0." in address and report.method}
    assert all(report.tuned is not None and report.tuned <= 1 for report in reports.values() if report.method)
    tuner = BlockTuner(OPTIONS, calibrating())
    aside = calibrating().tokens[tuner._aside]
    right = states(tmp_path / architecture, aside)
    plain, tuned = (
        ((states(tmp_path / name, aside) - right).square().sum(-1) / right.square().sum(-1)).sum()
        for name in ("plain", "tuned")
    )
    assert ratio == pytest.approx(float(tuned / plain), rel=1e-3)
    assert ratio < 1 or method != "rtn"  # with so few tokens little that holds for others is left to gain for solvers


def test_without_steps_all_stays_as_it_was_solved(made: Callable[..., Any], tmp_path: Path) -> None:
    made("plain", options=None)
    reports = made("tuned", options=OPTIONS.model_copy(update={"steps": 0}))
    plain, tuned = weights(tmp_path / "plain"), weights(tmp_path / "tuned")
    assert all(torch.equal(plain[name], tuned[name]) for name in plain)
    assert {report.tuned for report in reports.values()} == {1.0}


def test_what_is_worse_for_samples_set_aside_is_refused(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("plain", options=None)
    monkeypatch.setattr(blocks.Rounding, "step", lambda self, *_: self._positions.add_(1))
    reports = made("tuned")
    plain, tuned = weights(tmp_path / "plain"), weights(tmp_path / "tuned")
    assert all(torch.equal(plain[name], tuned[name]) for name in plain)
    assert {report.tuned for report in reports.values()} == {1.0}


def test_a_killed_run_ends_with_the_same_bytes(made: Callable[..., Any], tmp_path: Path) -> None:
    made("whole", "gptaq")

    class Killed(BlockTuner):
        def __call__(self, solved: SolvedBlock) -> Refined:
            if solved.number == 1:
                raise KeyboardInterrupt
            return super().__call__(solved)

    with pytest.raises(KeyboardInterrupt):
        made("out", "gptaq", refine=Killed(OPTIONS, calibrating()))
    made("out", "gptaq")
    whole, found = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_little_memory_changes_next_to_nothing(made: Callable[..., Any], tmp_path: Path) -> None:
    """States on the disk, micro-batches of one sample: sums in another order, so that a code in a hundred may turn."""
    made("whole")
    made("little", memory_gb=1e-5)
    whole, found = weights(tmp_path / "whole"), weights(tmp_path / "little")
    same = sum(int((whole[name] == found[name]).sum()) for name in whole)
    assert same / sum(tensor.numel() for tensor in whole.values()) > 0.98


def test_pruned_weights_stay_zero(made: Callable[..., Any], tmp_path: Path) -> None:
    made("plain", "sparsegpt", "w4g16", sparsity="0.5", options=None)
    reports = made("tuned", "sparsegpt", "w4g16", sparsity="0.5")
    plain, tuned = weights(tmp_path / "plain"), weights(tmp_path / "tuned")
    for name in (f"{address}.weight" for address in reports if ".0." in address):
        assert bool((tuned[name][plain[name] == 0] == 0).all())
        assert not torch.equal(plain[name], tuned[name])


def test_gradients_that_are_not_finite_end_a_block(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = blocks._Course._gradient
    calls, told = [0], []
    monkeypatch.setattr(blocks.console, "print", told.append)

    def broken(self: Any, *arguments: Any) -> Tensor:
        calls[0] += 1
        return right(self, *arguments) * (float("nan") if calls[0] > 7 * 9 else 1)

    monkeypatch.setattr(blocks._Course, "_gradient", broken)
    reports = made("tuned", "rtn", options=OPTIONS.model_copy(update={"checks": 24}))
    assert told[0].startswith("block 1: gradients are NaN or infinite at step 10 of tuning")
    first = {report.tuned for address, report in reports.items() if ".0." in address}
    assert len(first) == 1
    assert first.pop() < 1  # what the nine steps before it had gained stays
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path / "tuned").values())


def test_tokens_without_weight_do_not_count(made: Callable[..., Any], tmp_path: Path) -> None:
    counts = torch.ones(12, 16)
    counts[:, 8:] = 0
    one, other = calibrating(weights=counts), calibrating(weights=counts)
    other.tokens[:, 8:] = 5
    made("one", "rtn", calibration=one)
    made("other", "rtn", calibration=other)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_are_those_of_the_error(made: Callable[..., Any]) -> None:
    """Along the gradient of one module, by central differences; no rounding is in the way of the weight itself."""
    seen = []

    class Looking(BlockTuner):
        def __call__(self, solved: SolvedBlock) -> Refined:
            course = blocks._Course(solved, OPTIONS)
            rows = [0, 3, 5]
            for address, linear in course._linears.items():
                with blocks._training(solved.block, {linear.parameter}) as block, torch.enable_grad():
                    course._error(rows).backward()
                    gradient = course._gradient(block, address)
                weight = weight_of(solved.block, linear)
                start, step = weight.clone(), 0.005 * weight.norm() / gradient.norm()
                ends = [
                    float(course._error(rows))
                    for sign in (1, -1)
                    if weight.copy_(start + sign * step * gradient) is weight
                ]
                weight.copy_(start)
                seen.append(((ends[0] - ends[1]) / float(2 * step), float(gradient.square().sum())))
            return Refined({}, 1.0)

    made("out", refine=Looking(OPTIONS, calibrating()))
    assert len(seen) == 14
    for slope, expected in seen:
        assert slope == pytest.approx(expected, rel=0.03)


def test_a_loaded_model_keeps_what_it_is_trained_with(made: Callable[..., Any], tmp_path: Path) -> None:
    made("out", options=None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    norm, weight = model.model.layers[0].input_layernorm.weight, model.model.layers[1].mlp.up_proj.weight
    norm.requires_grad_(False)
    weight.grad = mine = torch.ones_like(weight)
    source = Model(tmp_path / "llama")
    plan = build_plan(PlanSpec.model_validate({"default": "w3g16"}), source.decoder, source.id, "gptaq")
    calibration = calibrating()
    compress_live(model, plan, calibration=calibration, refine=BlockTuner(OPTIONS, calibration))
    assert (norm.requires_grad, norm.grad, weight.requires_grad) == (False, None, True)
    assert weight.grad is mine
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not weight)


def test_too_few_samples_are_told() -> None:
    with pytest.raises(UserError, match=r"tune_blocks.validation: 4 of 4 calibration samples leave none to tune on"):
        BlockTuner(OPTIONS, calibrating(4))
    BlockTuner(OPTIONS, calibrating(5))
