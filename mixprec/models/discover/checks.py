"""What discovery refuses: modules that can't be told apart, and weights that would stay as they are without a word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from mixprec.core.errors import UserError
from mixprec.models.decoder import Block


def check_labels(blocks: Iterable[Block], where: str) -> None:
    """Raises UserError where one label would mean two modules."""
    met: dict[str, str] = {}
    for linear in (linear for block in blocks for linear in block.linears):
        other = met.setdefault(linear.label, linear.address)
        if other != linear.address:
            raise UserError(
                f"{where}: {other} and {linear.address} would both be called {linear.label}; the architecture's names "
                "are not understood"
            )


def check_own(model: nn.Module, blocks: Iterable[Block], where: str) -> None:
    """Raises UserError where two blocks have one matrix: they are compressed one by one, for inputs of their own."""
    met: dict[int, str] = {}
    for linear in (linear for block in blocks for linear in block.linears if linear.expert is None):
        other = met.setdefault(id(model.get_parameter(linear.weight_name)), linear.address)
        if other != linear.address:
            raise UserError(
                f"{where} has one matrix in {other} and in {linear.address}; blocks that share weights are not "
                "compressed"
            )


def check_around(body: nn.Module, blocks: nn.Module, known: Sequence[Block], where: str) -> None:
    """Raises UserError where the larger part of a decoder's linear modules repeats beside its blocks, as in models that
    list attention and MLPs apart: that part would stay as it is, whatever a plan says."""
    beside = {
        f"{name}.{inside}": module.weight.numel()
        for name, listed in body.named_children()
        if isinstance(listed, nn.ModuleList) and listed is not blocks and len(listed) == len(known)
        for inside, module in listed.named_modules()
        if isinstance(module, nn.Linear)
    }
    linears = sum(linear.weights for block in known for linear in block.linears)
    whole = sum(beside.values())
    if whole > linears:
        raise UserError(
            f"{where} has {whole / (whole + linears):.0%} of its repeated linear modules beside what its blocks are "
            f"taken for, such as {next(iter(beside))}; it is no decoder of blocks that is understood here"
        )


def check_share(blocks: nn.Module, known: Iterable[Block], where: str) -> None:
    """Raises UserError where the larger part of the blocks' weights is in matrices that no linear module holds, such as
    experts in stacks of a kind that transformers doesn't say: it would stay as it is, whatever a plan says."""
    others = [
        (f"{name}.{own}".partition(".")[2], parameter.numel())
        for name, module in blocks.named_modules()
        if not isinstance(module, nn.Linear)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.squeeze().dim() > 1
    ]
    linears = sum(linear.weights for block in known for linear in block.linears)
    whole = sum(count for _, count in others)
    if whole > linears:
        names = ", ".join(dict.fromkeys(name for name, _ in others))
        raise UserError(
            f"{where} has {whole / (whole + linears):.0%} of its blocks' weights in {names}, which are no linear "
            "modules and no experts of a kind that is known here; only linear modules are compressed"
        )
