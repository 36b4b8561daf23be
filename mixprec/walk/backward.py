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

    Experts that no token came to meet nothing, and are left out. ``hidden`` (1, T, hidden) enters the block, with the
    ``context`` that the model hands it; ``gradients`` (R, T, hidden) are those at its output. Exact; the block's
    parameters get none.
    """
    start = hidden.detach().requires_grad_()
    with torch.enable_grad(), _recording(block, known) as seen:
        output = through(block, start, context)
    ends = [start, *(out for _, out in seen.values())]
    found: list[tuple[Tensor, ...]] = []
    for number, row in enumerate(gradients, 1):
        found.append(torch.autograd.grad(output, ends, row[None], retain_graph=number < len(gradients)))
    at_input, *at_outputs = (torch.stack(rows) for rows in zip(*found, strict=True))
    met = zip(seen.items(), at_outputs, strict=True)
    tokens = {address: (inputs.flatten(0, -2), rows.flatten(1, -2)) for (address, (inputs, _)), rows in met}
    return at_input[:, 0], {address: Met(*each) for address, each in tokens.items()}


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
