"""One sweep through the model, up without gradients and down with them, a block's weights in memory at a time.

Up: the hidden states that enter each block are kept. At the top: gradients of the losses at the last block's output.
Down: each block runs again, with gradients from its output to its input and to every linear's output on the way; these
meet the linear's inputs and all candidates' errors, and what is left are sums. Nothing grows with the number of modules
or candidates but these sums; kept are the hidden states of the passages of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec.compress.candidatefiles import Candidates
from mixprec.core.memory import release_memory
from mixprec.models.decoder import Block, Linear
from mixprec.models.weights import through, weight_of
from mixprec.sensitivity.passages import Scored
from mixprec.sensitivity.sums import ModuleSums, module_sums
from mixprec.walk import blocks
from mixprec.walk.backward import Met, back
from mixprec.walk.losses import Row, at_hidden
from mixprec.walk.walk import walk


class State(NamedTuple):
    """Where gradients are taken: at the original's weights, moved by ``way`` of the error of candidate ``base``.

    way 0: the original; 1: the model whose linears are all in the format ``base``.
    """

    base: str | None = None
    way: float = 0.0


class _Traveller:
    def __init__(self, model: Any, scored: Scored) -> None:
        entering = blocks.block_inputs(model, scored.tokens[None])
        self.scored, self.contexts = scored, entering.contexts
        self.states = [entering.hidden]
        self.reference: Tensor | None = entering.hidden
        self.gradient: Tensor | None = None
        self.found: dict[str, ModuleSums] = {}


@torch.no_grad()
def sweep(
    opened: blocks.Blocks, candidates: Candidates, passages: Sequence[Scored], rows: Sequence[Row], state: State
) -> list[dict[str, ModuleSums]]:
    """For each passage the sums of every module, by address, for all ``candidates`` and the gradients ``rows``.

    ``opened`` needs its norm and head.
    """
    model, known = opened.model, opened.decoder.blocks
    compared = state.way > 0 and any(row.loss == "kl" for row in rows)
    travellers = [_Traveller(model, passage) for passage in passages]

    def up(index: int, block: nn.Module) -> None:
        for each in travellers:
            if compared:
                assert each.reference is not None
                each.reference = through(block, each.reference, each.contexts[index])
        _move(block, known[index], candidates, state)
        for each in travellers:
            each.states.append(through(block, each.states[-1], each.contexts[index]))

    def down(index: int, block: nn.Module) -> None:
        errors = _errors(block, known[index], candidates)
        _move(block, known[index], candidates, state)
        for each in travellers:
            _down(block, known[index], each, errors)
            release_memory()

    walk(opened, range(opened.layers), up)
    for each in travellers:
        each.gradient = at_hidden(
            model,
            each.states.pop(),
            each.reference if compared else None,
            each.scored.tokens,
            list(rows),
            dict(each.scored.weights),
            each.scored.seed,
        )
    walk(opened, reversed(range(opened.layers)), down)
    return [each.found for each in travellers]


def _down(block: nn.Module, known: Block, each: _Traveller, errors: Mapping[str, Tensor]) -> None:
    """One passage through a block again, and its gradients from the block's output to its input."""
    assert each.gradient is not None
    hidden, context = each.states.pop(), each.contexts[known.layer - 1]
    each.gradient, met = back(block, known, hidden, each.gradient, context)
    for linear in known.linears:
        inputs, gradients = met.get(linear.address) or _nothing(linear, each.gradient)
        each.found[linear.address] = module_sums(inputs, gradients, errors[linear.address])


def _nothing(linear: Linear, like: Tensor) -> Met:
    """What an expert meets that no token came to."""
    return Met(like.new_zeros(0, linear.in_features), like.new_zeros(len(like), 0, linear.out_features))


def _errors(block: nn.Module, known: Block, candidates: Candidates) -> dict[str, Tensor]:
    """Address -> (C, out, in) what each candidate adds to the original weight."""
    restored, found = candidates.block(known.layer), {}
    for linear in known.linears:
        weight, by_name = weight_of(block, linear), restored[linear.address]
        found[linear.address] = torch.stack([by_name[name].to(weight) - weight for name in candidates.names])
    return found


def _move(block: nn.Module, known: Block, candidates: Candidates, state: State) -> None:
    if state.base is None or state.way == 0:
        return
    restored = candidates.block(known.layer, (state.base,))
    for linear in known.linears:
        if linear.address in restored:  # a plan's weights: what it keeps isn't named
            weight = weight_of(block, linear)
            weight.lerp_(restored[linear.address][state.base].to(weight), state.way)
