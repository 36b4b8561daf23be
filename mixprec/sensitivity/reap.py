"""What routed experts contribute: router-weighted expert activation pruning, REAP (arXiv 2510.13999, eq. 9).

The saliency of expert e is the mean, over the tokens that the router sends to it, of g_e(x) ‖f_e(x)‖₂: the weight that
its output gets, as the model applies it, times the output's size. One pass without gradients, a block in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mixprec.models.decoder import Block
from mixprec.models.experts import ExpertLinear, Experts
from mixprec.models.weights import through
from mixprec.sensitivity.passages import Scored
from mixprec.walk import blocks
from mixprec.walk.walk import walk


class Sums(NamedTuple):
    """Over the tokens sent to each of E experts, (E,) float64: of g ‖f(x)‖, and of what the tokens count."""

    weighted: Tensor
    counts: Tensor

    @property
    def mean(self) -> Tensor:
        """(E,) saliency; 0 where no token came."""
        return torch.where(self.counts > 0, self.weighted / self.counts.clamp(min=torch.finfo(torch.float64).tiny), 0)


@torch.no_grad()
def saliency(
    opened: blocks.Blocks, scored: Sequence[Scored], advance: Callable[[int], None] = lambda _: None
) -> dict[str, dict[str, float]]:
    """Target -> address of each routed expert's last linear -> saliency, on the passages ``scored``.

    A token counts as much as the prediction that is made at it. ``advance`` is told of each block that is done.
    """
    decoder, entering = opened.decoder, [blocks.block_inputs(opened.model, each.tokens[None]) for each in scored]
    states = [each.hidden for each in entering]
    weights = {name: [_at_tokens(each.weights[name]) for each in scored] for name in scored[0].weights}
    found: dict[str, dict[str, float]] = {name: {} for name in weights}

    def visit(index: int, block: nn.Module) -> None:
        known, sums = decoder.blocks[index], {name: dict[str, Sums]() for name in weights}
        for number, given in enumerate(entering):
            with _watching(block, known, {name: each[number] for name, each in weights.items()}, sums):
                states[number] = through(block, states[number], given.contexts[index])
        for name, by_path in sums.items():
            for path, each in by_path.items():
                found[name] |= _by_address(known, path, each.mean)
        advance(1)

    walk(opened, range(opened.layers), visit)
    return found


def _at_tokens(predictions: Tensor) -> Tensor:
    """(T,) what each token counts, from (T − 1,) of the predictions of tokens behind the first; the last predicts none
    that is known."""
    return torch.cat([predictions, predictions.new_zeros(1)]).double()


def _by_address(known: Block, path: str, mean: Tensor) -> dict[str, float]:
    last = (each for each in known.linears if each.kind == "down" and each.parameter.startswith(f"{path}."))
    return {each.address: float(mean[cast(int, each.expert)]) for each in last}


@contextmanager
def _watching(
    block: nn.Module, known: Block, weights: Mapping[str, Tensor], sums: Mapping[str, dict[str, Sums]]
) -> Iterator[None]:
    """Add to ``sums``, target -> path of a layer's experts -> sums, what experts put out in the pass inside.

    ``weights``: target -> (T,) what tokens count.
    """
    with ExitStack() as stack:
        for path in {group.routed for group in known.groups if group.routed is not None}:
            experts = cast(Experts, block.get_submodule(path))
            watch = _Watch(len(experts), {name: each.flatten() for name, each in weights.items()})
            stack.callback(experts.register_forward_pre_hook(watch.routed).remove)
            for number in range(len(experts)):
                stack.callback(experts.last(number).register_forward_hook(watch.put_out(number)).remove)
            stack.callback(watch.into, path, sums)
        yield


class _Watch:
    """A layer's experts in one pass."""

    def __init__(self, count: int, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._sums = {name: Sums(*torch.zeros(2, count, dtype=torch.float64)) for name in weights}
        self._gates = torch.empty(0)

    def routed(self, _experts: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """What the router says: (T, k) experts, and the weights of what they put out."""
        hidden, chosen, gates = arguments
        self._gates = gates.new_zeros(len(hidden), len(self._sums[next(iter(self._sums))].counts), dtype=torch.float64)
        self._gates.scatter_(1, chosen.to(torch.long), gates.double())

    def put_out(self, number: int) -> Callable[..., None]:
        """A hook of an expert's last linear."""

        def add(module: ExpertLinear, _: Any, made: Tensor) -> None:
            assert module.tokens is not None  # the router chose
            size = torch.linalg.vector_norm(made.double(), dim=-1) * self._gates[module.tokens, number]
            for name, sums in self._sums.items():
                counts = self._weights[name].to(size.device)[module.tokens]
                sums.weighted[number] += float((size * counts).sum())
                sums.counts[number] += float(counts.sum())

        return add

    def into(self, path: str, sums: Mapping[str, dict[str, Sums]]) -> None:
        """Add what was seen."""
        for name, mine in self._sums.items():
            before = sums[name].get(path)
            sums[name][path] = mine if before is None else Sums(*(a + b for a, b in zip(mine, before, strict=True)))
