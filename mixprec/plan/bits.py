"""All bit accounting: bits per weight, bytes of a packed model, bytes of a 16-bit one. Reads no weights.

Codes take ``bits`` each, scales 16 bits per group, zero points of asymmetric formats ``bits`` per group. Formats with
code books take 16 bits per group for the offset too, and 16 bits per row for each of the 2^bits entries of its book.
Types of llama.cpp take what their blocks take; all that is neither codes nor signs counts as scales.
Where weights are zero, only the others are counted, and one bit per weight that says which they are.
Dropped experts take nothing, nor do their biases and their rows of the router; averages run over their weights too.
Modules that are kept and everything that a plan doesn't name (norms, biases, most often embedding and head, once if
tied) take 16 bits per element. Averages run over the weights of the linear modules of the blocks, whatever the plan
says of embedding and head; bytes are those of all.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import WORD, AnyFormat, fitting
from mixprec.plan.dropping import left_out
from mixprec.plan.schema import Plan, check_modules


@dataclass(frozen=True)
class Storage:
    """What one or more modules take, in bits.

    ``codes``: the weights as codes, or kept. ``zeros``: zero points, or the offsets beside a code book.
    ``indices``: which weights are not zero.
    """

    weights: int
    codes: int
    scales: int = 0
    zeros: int = 0
    codebooks: int = 0
    indices: int = 0

    @property
    def code_bits(self) -> float:
        """Bits per weight of the codes alone."""
        return self.codes / self.weights

    @property
    def effective_bits(self) -> float:
        """Bits per weight with scales, zero points, code books and indices."""
        return self.bits / self.weights

    @cached_property
    def bits(self) -> int:
        """Bits of everything."""
        return sum(self._parts)

    @cached_property
    def bytes(self) -> int:
        """Bytes of the packed tensors, each filled up to a whole byte."""
        return sum(-(-part // 8) for part in self._parts)

    @property
    def _parts(self) -> tuple[int, ...]:
        return (self.codes, self.scales, self.zeros, self.codebooks, self.indices)


@dataclass(frozen=True)
class FormatTotal:
    """How much of the model a format holds; ``bytes``: packed."""

    modules: int
    weights: int
    bytes: int


@dataclass(frozen=True)
class Account:
    """``modules``: address -> storage; ``formats``: format -> totals, both in the model's order; embedding and head
    have totals of their own.

    ``packed_bytes``: the whole model with packed codes; ``dense_bytes``: the whole model in 16 bits, which is
    also what a ``dense`` checkpoint of a 16-bit model takes.
    """

    modules: dict[str, Storage]
    formats: dict[str, FormatTotal]
    code_bits: float
    effective_bits: float
    packed_bytes: int
    dense_bytes: int

    @property
    def other_bytes(self) -> int:
        """Packed bytes of what the plan doesn't name."""
        return self.packed_bytes - sum(total.bytes for total in self.formats.values())


def storage(module: Linear, format: AnyFormat, sparsity: float = 0.0) -> Storage:
    """What ``module`` takes in ``format``, with a share ``sparsity`` (0 to 1) of its weights zero.

    Zeros are left out, and one bit per weight says where they are, unless all codes take no more than that.
    """
    format = fitting(format, module.in_features)  # a candidate of a budget need not fit yet
    taken = format.takes(module.out_features, module.in_features)
    left_out = round(sparsity * module.weights) * (taken.codes // module.weights)
    if left_out <= module.weights:
        return Storage(module.weights, *taken)
    return Storage(module.weights, *taken._replace(codes=taken.codes - left_out), indices=module.weights)


def account(plan: Plan, inventory: Decoder) -> Account:
    """Bits and bytes of a model under ``plan``.

    Raises UserError where the plan's modules are not the model's.
    """
    check_modules(plan, inventory, f"plan for {plan.model}")
    formats = plan.formats
    planned = inventory.planned(formats)
    known: dict[tuple[int, int, AnyFormat], Storage] = {}  # mixtures have few shapes and tens of thousands of modules
    modules = {}
    for module in planned:
        key = (module.out_features, module.in_features, formats[module.address])
        if key not in known:
            known[key] = storage(module, key[2])
        modules[module.address] = known[key]
    total = _total(modules[module.address] for module in inventory.linears)
    return Account(
        modules=modules,
        formats=_by_format(plan, planned, modules),
        code_bits=total.code_bits,
        effective_bits=total.effective_bits,
        packed_bytes=sum(item.bytes for item in modules.values())
        + (unplanned(inventory, formats) - left_out(plan.dropped, inventory)) * WORD // 8,
        dense_bytes=dense_bytes(inventory),
    )


def unplanned(inventory: Decoder, addresses: Container[str]) -> int:
    """How many parameters are none of the linear modules' weights, nor of the matrices ``addresses``."""
    return sum(inventory.other.values()) - sum(m.weights for m in inventory.outside if m.address in addresses)


def dense_bytes(inventory: Decoder) -> int:
    """The whole model in 16 bits."""
    return inventory.parameters * WORD // 8


def _total(items: Iterable[Storage]) -> Storage:
    listed = list(items)
    return Storage(
        weights=sum(item.weights for item in listed),
        codes=sum(item.codes for item in listed),
        scales=sum(item.scales for item in listed),
        zeros=sum(item.zeros for item in listed),
        codebooks=sum(item.codebooks for item in listed),
        indices=sum(item.indices for item in listed),
    )


def _by_format(plan: Plan, planned: Iterable[Linear], modules: Mapping[str, Storage]) -> dict[str, FormatTotal]:
    """Pruned modules apart: ``keep, pruned``. What pruning could save is not counted: checkpoints hold the zeros."""
    totals: dict[str, FormatTotal] = {}
    for module in planned:
        treatment = plan.modules[module.address]
        name = f"{treatment.format}, pruned" if treatment.sparsity is not None else str(treatment.format)
        name = name if module.layer else f"{name}, {module.kind}"
        so_far, taken = totals.get(name, FormatTotal(0, 0, 0)), modules[module.address].bytes
        totals[name] = FormatTotal(so_far.modules + 1, so_far.weights + module.weights, so_far.bytes + taken)
    return totals
