"""Guided solves against whole models: gradients by full backpropagation, Hessians by plain sums, rows by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated import calibrating, inputs_of
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mixprec.calibration.data import Calibration
from mixprec.compress import guided
from mixprec.compress.gptaq import gptaq
from mixprec.compress.gptq import gptq
from mixprec.compress.guided import Guidance, gather
from mixprec.compress.live import compress_live
from mixprec.compress.options import GuidedSpec, SolveOptions
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.decoder import Linear
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import dequantize
from mixprec.numerics.hessian import factorize
from mixprec.numerics.salience import row_groups
from mixprec.plan.schema import Plan
from mixprec.walk.losses import at_logits

Make = Callable[..., Path]
Planner = Callable[..., Plan]

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text"]


def options(**spec: Any) -> SolveOptions:
    return SolveOptions(grid_search=False, guided=GuidedSpec(**spec))


def backpropagated(model: Any, calibration: Calibration, spec: GuidedSpec) -> dict[str, Tensor]:
    """Address -> (N, T, out) squared gradients at the outputs of linears, by a pass back through the whole model."""
    found: dict[str, list[Tensor]] = {}
    outputs: dict[str, Tensor] = {}
    linears = [linear.address for linear in decoder_of(model.config).linears]
    handles = [
        model.get_submodule(address).register_forward_hook(
            lambda _m, _x, out, address=address: outputs.__setitem__(address, out)
        )
        for address in linears
    ]
    for number, tokens in enumerate(calibration.tokens):
        logits = model(tokens[None], use_cache=False).logits[0, :-1]
        random = torch.Generator().manual_seed(spec.seed + number)
        at = at_logits(spec.loss, logits.detach().float(), None, tokens[1:], random)
        if calibration.weights is not None:
            at = at * calibration.weights[number, 1:, None].sqrt()
        gradients = torch.autograd.grad(logits, [outputs[address] for address in linears], at.to(logits))
        for address, gradient in zip(linears, gradients, strict=True):
            found.setdefault(address, []).append(gradient[0].double().square())
    for handle in handles:
        handle.remove()
    return {address: torch.stack(each) for address, each in found.items()}


@torch.no_grad()
def one_after_the_other(source: Path, plan: Plan, calibration: Calibration, spec: GuidedSpec, method: str) -> Any:
    """Compress group by group and part by part; before each group the whole model runs, compressed as it is by then."""
    model, full = (AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32) for _ in range(2))
    with torch.enable_grad():
        squares = backpropagated(full, calibration, spec)
    for group in decoder_of(load_config(str(source))).groups:
        x, original = (inputs_of(each, group[0].address, calibration) for each in (model, full))
        for module in group:
            format, weight = plan.formats[module.address], model.get_submodule(module.address).weight
            if not isinstance(format, Format):
                continue
            for rows in row_groups(module.out_features, spec.groups):
                s = squares[module.address][..., rows].mean(-1).flatten() ** spec.power
                weighted = x * (s / s.sum())[:, None]
                factor = factorize((x.T @ weighted).float(), damping=0.03, act_order=True, group_size=format.group_size)
                drift = ((original - x).T @ weighted).float()
                half = weight[rows].bfloat16()
                if method == "gptq":
                    found = gptq(half, factor, format, search=None)
                else:
                    found = gptaq(half, factor, format, drift, search=None)
                weight[rows] = dequantize(found, format, torch.bfloat16).float()
    return model


@pytest.mark.parametrize(
    ("architecture", "method", "spec", "weighted"),
    [
        *((architecture, "gptq", {"groups": 3}, False) for architecture in ARCHITECTURES),
        ("llama", "gptaq", {"groups": 2, "seed": 7}, False),
        ("llama", "gptq", {"groups": 1, "loss": "loss"}, True),
        ("llama", "gptaq", {"groups": 4, "power": 1.0}, True),
    ],
)
def test_every_part_of_the_rows_is_solved_by_its_own_hessian(
    checkpoint: Make, planner: Planner, tmp_path: Path, architecture: str, method: str, spec: Any, weighted: bool
) -> None:
    source = checkpoint(architecture)
    plan = planner(source, "w3g16", method, last_o="keep", last_up="w4g8")
    weights = torch.rand(6, 20, generator=torch.Generator().manual_seed(3)).round() if weighted else None
    calibration = calibrating(weights=weights)
    compress(Model(source), plan, tmp_path / "out", calibration=calibration, options=options(**spec))
    expected = one_after_the_other(source, plan, calibration, GuidedSpec(**spec), method)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for address in plan.changed:
        wanted, made = expected.get_submodule(address).weight, found[f"{address}.weight"].float()
        # Both round weights that differ in the last digits: few fall to the other side.
        assert float((wanted != made).float().mean()) < 0.02, address


def constant(self: Guidance, linears: Iterable[Linear]) -> dict[str, Tensor]:
    return {linear.address: torch.ones(6, 20, 1) for linear in linears}


@pytest.mark.parametrize(("method", "more"), [("gptq", {}), ("gptaq", {}), ("sparsegpt", {"sparsity": "0.5"})])
def test_where_all_tokens_count_the_same_nothing_changes(
    checkpoint: Make, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: Any
) -> None:
    source, calibration = checkpoint(), calibrating()
    plan = planner(source, "w3g16", method, **more)
    compress(Model(source), plan, tmp_path / "plain", calibration=calibration)
    monkeypatch.setattr(Guidance, "of", constant)
    same = SolveOptions(guided=GuidedSpec(groups=1))
    compress(Model(source), plan, tmp_path / "guided", calibration=calibration, options=same)
    plain, made = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "guided"))
    assert plain == made


def test_cards_of_what_is_not_guided_stay_as_they_were() -> None:
    assert set(SolveOptions().model_dump()) == {"damping", "act_order", "grid_search", "refine", "clip"}
    assert SolveOptions.model_validate(options(groups=2).model_dump()) == options(groups=2)


def test_the_form_is_what_the_kl_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A row of the last linear moves the logits of its own token alone: there the form is the KL's own, up to draws."""
    calibration = calibrating(2, 12)
    model = Model(tiny_checkpoint)
    spec = GuidedSpec(groups=10**6, draws=512)
    files = gather(model.open_blocks(), model.identity, calibration, spec, tmp_path / "guidance").files
    loaded = model.load().model.double()
    last = decoder_of(loaded.config).linears[-1]
    weight = loaded.get_submodule(last.address).weight
    x = inputs_of(loaded, last.address, calibration).view(2, 12, -1)

    @torch.no_grad()
    def predicted() -> Tensor:
        return loaded(calibration.tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)

    before, ratios = predicted(), []
    for row in range(0, len(weight), 4):
        delta = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(row)).double() * 0.02
        s = torch.stack([load_file(path)[last.address][:, row].double() for path in files])
        form = 0.5 * float((s * (x @ delta).square()).sum())
        kl = 0.0
        for sign in (1, -1):  # both ways: what is odd in the step goes
            weight.data[row] += sign * delta
            kl += 0.5 * float((before.exp() * (before - predicted())).sum())
            weight.data[row] -= sign * delta
        ratios.append(form / kl)
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.1), ratios


def test_a_killed_sweep_goes_on_and_gives_the_same_bytes(
    checkpoint: Make, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calibration = checkpoint(), calibrating()
    plan, chosen = planner(source, "w3g16", "gptq"), options(groups=2)
    compress(Model(source), plan, tmp_path / "once", calibration=calibration, options=chosen)
    monkeypatch.setattr(guided, "_TOGETHER", 2)
    swept, save, saved = guided._sweep, artifacts.save_tensors, []
    numbers: list[list[int]] = []

    def sweeping(opened: Any, calibration: Any, here: Any, *rest: Any) -> Any:
        numbers.append(list(here))
        return swept(opened, calibration, here, *rest)

    def dying(path: Path, *rest: Any) -> None:
        saved.append(path)
        if len(saved) in (4, 9):  # in the sweep, and when the second block is done
            raise KeyboardInterrupt
        save(path, *rest)

    monkeypatch.setattr(guided, "_sweep", sweeping)
    monkeypatch.setattr(artifacts, "save_tensors", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compress(Model(source), plan, tmp_path / "out", calibration=calibration, options=chosen)
    compress(Model(source), plan, tmp_path / "out", calibration=calibration, options=chosen)
    assert numbers == [[0, 1], [2, 3], [3, 4], [5]]
    for name in ("model.safetensors", "mixprec.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    assert not (tmp_path / ".out.blocks").exists()


def test_other_gradients_are_taken_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = Model(tiny_checkpoint)

    def swept(calibration: Calibration, **spec: Any) -> int:
        done: list[int] = []
        guidance = GuidedSpec(**spec)
        gather(model.open_blocks(), model.identity, calibration, guidance, tmp_path / "guidance", done.append)
        return sum(done[1:])

    few = calibrating(2, 8)
    assert [swept(few), swept(few), swept(few, power=1), swept(few, seed=1), swept(few, groups=2)] == [2, 0, 0, 2, 2]
    assert swept(calibrating(2, 9), groups=3) == 2
    there = [tensor.nbytes for path in (tmp_path / "guidance").iterdir() for tensor in load_file(path).values()]
    assert guided.disk(["gptq"], options(groups=3), calibrating(2, 9), model.decoder) == sum(there)
    assert guided.disk(["awq"], options(groups=3), calibrating(2, 9), model.decoder) == 0


def test_a_loaded_model_gets_what_a_checkpoint_would(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source, calibration = checkpoint(dtype=torch.float32), calibrating()
    plan, chosen = planner(source, "w3g16", "gptaq"), options(groups=4)
    compress(Model(source), plan, tmp_path / "out", calibration=calibration, options=chosen)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    compress_live(model, plan, calibration=calibration, options=chosen)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("format", ["keep", "w4g16"])
def test_pruning_is_guided_too(checkpoint: Make, planner: Planner, tmp_path: Path, format: str) -> None:
    source, calibration = checkpoint(), calibrating()
    plan = planner(source, format, "sparsegpt", sparsity="0.5")
    for name, chosen in (("plain", SolveOptions()), ("guided", options(groups=2))):
        compress(Model(source), plan, tmp_path / name, calibration=calibration, options=chosen)
    plain, made = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "guided"))
    for address in plan.changed:
        zeros = made[f"{address}.weight"] == 0
        assert float(zeros.float().mean()) >= 0.49
        assert not torch.equal(zeros, plain[f"{address}.weight"] == 0)


def test_gradients_that_are_not_finite(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, at_hidden = Model(tiny_checkpoint), guided.at_hidden
    monkeypatch.setattr(guided, "at_hidden", lambda *arguments: at_hidden(*arguments) * float("inf"))
    with pytest.raises(UserError, match=r"layers\.1\..*gradients .* NaN or infinite on calibration sample 0"):
        gather(model.open_blocks(), model.identity, calibrating(2, 8), GuidedSpec(), tmp_path / "guidance")
