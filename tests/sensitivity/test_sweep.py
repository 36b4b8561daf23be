"""The sweep against autograd through the whole model, and against changes that are really made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from scoring import Tiny, scored
from torch import Tensor

from mixprec.models.model import Model
from mixprec.sensitivity import evidence, sweep
from mixprec.sensitivity.passages import Scored
from mixprec.sensitivity.sums import module_sums
from mixprec.sensitivity.sweep import State
from mixprec.walk.losses import Row, at_logits


def model_at(tiny: Tiny, way: float = 0.0, base: str = "w2g16") -> Any:
    model = Model(tiny.folder).load().model.double()
    for address in tiny.addresses:
        weight = model.get_submodule(address).weight
        weight.data.lerp_(tiny.candidates.weight(address, base).double(), way)
    return model


def errors(tiny: Tiny, original: Any, address: str) -> Tensor:
    weight = original.get_submodule(address).weight
    return torch.stack([tiny.candidates.weight(address, name).double() - weight for name in tiny.candidates.names])


def logits(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens[None]).logits[0].double()
    return found


def signals(model: Any, passage: Scored, at: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Address -> inputs and gradients at the output, for a gradient (T, vocabulary) ``at`` the logits."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _m, x, y, name=name: seen.__setitem__(name, (x[0][0].detach(), y)))
        for name, module in model.named_modules()
        if name.endswith("_proj")
    ]
    embedded = model.get_input_embeddings()(passage.tokens[None]).detach().requires_grad_()
    out = model(inputs_embeds=embedded).logits
    gradients = torch.autograd.grad(out, [y for _, y in seen.values()], at[None].to(out))
    for handle in handles:
        handle.remove()
    return {name: (x.double(), g[0].double()) for (name, (x, _)), g in zip(seen.items(), gradients, strict=True)}


@pytest.mark.parametrize(
    ("way", "loss", "target"),
    [(0.0, "fisher", "backtracking"), (0.0, "loss", "all"), (0.5, "kl", "backtracking"), (1.0, "fisher", "all")],
)
def test_sums_are_those_of_backpropagation_through_the_whole_model(
    tiny: Tiny, way: float, loss: Any, target: str
) -> None:
    passage = scored(1)[0]
    (found,) = sweep.sweep(tiny.open(), tiny.candidates, [passage], [Row(loss, target)], State("w2g16", way))
    original, model = model_at(tiny), model_at(tiny, way)
    with torch.no_grad():
        own, reference = logits(model, passage.tokens)[:-1], logits(original, passage.tokens)[:-1]
    random = torch.Generator().manual_seed(passage.seed)
    at = at_logits(loss, own, reference, passage.tokens[1:], random)
    weights = passage.weights[target].double()
    at = torch.cat([at * (weights.sqrt() if loss == "fisher" else weights)[:, None], torch.zeros(1, own.shape[1])])
    for address, (x, g) in signals(model, passage, at).items():
        wanted = module_sums(x, g[None], errors(tiny, original, address))
        scale = float(wanted.square.max().sqrt())
        torch.testing.assert_close(found[address].slope, wanted.slope, rtol=1e-3, atol=1e-3 * scale + 1e-7)
        torch.testing.assert_close(found[address].square, wanted.square, rtol=1e-3, atol=1e-3 * scale**2 + 1e-12)


def test_the_slope_is_what_a_small_change_does(tiny: Tiny) -> None:
    passage = scored(1)[0]
    (found,) = sweep.sweep(tiny.open(), tiny.candidates, [passage], [Row("loss", "all")], State())
    model = model_at(tiny)

    @torch.no_grad()
    def loss() -> float:
        own = logits(model, passage.tokens)[:-1]
        return float(torch.nn.functional.cross_entropy(own, passage.tokens[1:], reduction="sum"))

    for address in tiny.addresses:
        weight, error = model.get_submodule(address).weight, errors(tiny, model, address)[1]
        change, step = [], 0.05
        for sign in (1, -1):
            weight.data.add_(error, alpha=sign * step)
            change.append(loss())
            weight.data.sub_(error, alpha=sign * step)
        slope = (change[0] - change[1]) / (2 * step)
        assert float(found[address].slope[0, 1]) == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_squared_slopes_average_to_twice_the_quadratic_kl(tiny: Tiny) -> None:
    """Exactly: Σ_s δ_sᵀ F_s δ_s with the logits' linear change δ, from a difference; over many draws: the slopes'."""
    # The mean of so many squares, which all modules share, spreads by 0.04; random weights differ between processors.
    passage, draws = scored(1, tokens=8)[0], 1024
    rows = [Row("fisher", "all", draw) for draw in range(draws)]
    (found,) = sweep.sweep(tiny.open(), tiny.candidates, [passage], rows, State())
    model = model_at(tiny)
    ratios = []
    for address in tiny.addresses:
        weight, error, moved = model.get_submodule(address).weight, errors(tiny, model, address)[0], []
        with torch.no_grad():
            p = logits(model, passage.tokens)[:-1].softmax(-1)
            for sign in (1, -1):
                weight.data.add_(error, alpha=sign * 0.02)
                moved.append(logits(model, passage.tokens)[:-1])
                weight.data.sub_(error, alpha=sign * 0.02)
        delta = (moved[0] - moved[1]) / 0.04
        exact = float((p * delta.square()).sum() - (p * delta).sum(-1).square().sum())
        ratios.append(float(found[address].slope[:, 0].square().mean()) / exact)
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.15), ratios
    assert all(0.75 < ratio < 1.35 for ratio in ratios)


def test_passages_share_a_sweep_and_go_on_after_a_kill(tiny: Tiny, tmp_path: Any, monkeypatch: Any) -> None:
    passages, rows = scored(3), [Row("fisher", "all"), Row("fisher", "backtracking")]
    evidence.gather(tiny.open(), tiny.candidates, passages, [0, 1, 2], rows, State(), tmp_path / "once")
    monkeypatch.setattr(evidence, "TOGETHER", 1)
    calls = []

    def dies_at_the_third(*arguments: Any) -> Any:
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sweep.sweep(*arguments)

    monkeypatch.setattr(evidence, "sweep", dies_at_the_third)
    for _ in range(2):
        try:
            evidence.gather(tiny.open(), tiny.candidates, passages, [0, 1, 2], rows, State(), tmp_path / "killed")
        except KeyboardInterrupt:
            continue
    assert [len(found) for found in calls] == [1, 1, 1, 1]
    for number in range(3):
        name = f"{number:05d}.safetensors"
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    known = evidence.load(tmp_path / "once", 3, tiny.addresses, rows)
    assert known.slope.shape == (3, len(tiny.addresses), 2, 3)
