"""Gradients down through a block, to its input and to the output of every linear on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec.models.decoder import Block
from mixprec.models.weights import module_of, through


class Met(NamedTuple):
    """What a linear meets in a pass down: its ``inputs`` (T, in), and R ``gradients`` (R, T, out) at its output; of an
    expert those of the tokens that the router sent to it."""

    inputs: Tensor
    gradients: Tensor


def back(
    block: nn.Module, known: Block, hidden: Tensor, gradients: Tensor, context: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Met]]:
    """One passage through a block again and back: gradients (R, T, hidden) at its input, and by address what its
    linears meet.

    Experts that no token came to meet nothing, and are left out; linears that only help to choose meet gradients of
    zero. ``hidden`` (1, T, hidden) enters the block, with the ``context`` that the model hands it; ``gradients``
    (R, T, hidden) are those at its output. Exact; the block's parameters get none.
    """
    start = hidden.detach().requires_grad_()
    with torch.enable_grad(), _recording(block, known) as seen:
        output = through(block, start, context)
    # What only chooses, such as the keys that are looked at, has no gradient.
    outputs = {address: out for address, (_, out) in seen.items() if out.requires_grad}
    ends = [start, *outputs.values()]
    found: list[tuple[Tensor, ...]] = []
    for number, row in enumerate(gradients, 1):
        again = number < len(gradients)
        found.append(torch.autograd.grad(output, ends, row[None], retain_graph=again, materialize_grads=True))
    at_input, *at_outputs = (torch.stack(rows) for rows in zip(*found, strict=True))
    reached = dict(zip(outputs, at_outputs, strict=True))
    met = {}
    for address, (inputs, out) in seen.items():
        rows = reached[address] if address in reached else out.new_zeros(len(gradients), *out.shape)
        met[address] = Met(inputs.flatten(0, -2), rows.flatten(1, -2))
    return at_input[:, 0], met


@contextmanager
def _recording(block: nn.Module, known: Block) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Address -> inputs (1, T, in), detached, and outputs (1, T, out), in the graph, of a block's linears."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as stack:
        for linear in known.linears:

            def keep(_module: nn.Module, inputs: Any, output: Tensor, address: str = linear.address) -> None:
                seen[address] = (inputs[0].detach(), output)

            stack.callback(module_of(block, linear).register_forward_hook(keep).remove)
        yield seen
