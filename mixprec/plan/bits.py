"""All bit accounting: bits per weight, bytes of a packed model, bytes of a 16-bit one. Reads no weights.

Codes take ``bits`` each, scales 16 bits per group, zero points of asymmetric formats ``bits`` per group.
Modules that are kept and everything else (embeddings, norms, biases, the head, once if tied) take 16 bits per
element. Averages run over the weights of the linear modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mixprec.modules import Inventory, LinearModule
from mixprec.numerics.formats import Format, Keep
from mixprec.plan.schema import Plan, check_modules

_WORD = 16  # bits of a kept weight, and of a scale


@dataclass(frozen=True)
class Storage:
    """What one or more modules take, in bits: their weights as codes (or kept), scales, zero points."""

    weights: int
    codes: int
    scales: int
    zeros: int

    @property
    def code_bits(self) -> float:
        """Bits per weight without scales and zero points."""
        return self.codes / self.weights

    @property
    def effective_bits(self) -> float:
        """Bits per weight with scales and zero points."""
        return (self.codes + self.scales + self.zeros) / self.weights

    @property
    def bytes(self) -> int:
        """Bytes of the packed tensors, each filled up to a whole byte."""
        return sum(-(-bits // 8) for bits in (self.codes, self.scales, self.zeros))


@dataclass(frozen=True)
class FormatTotal:
    """How much of the model a format holds."""

    modules: int
    weights: int


@dataclass(frozen=True)
class Account:
    """``modules``: address -> storage; ``formats``: format -> totals, both in the model's order.

    ``packed_bytes``: the whole model with packed codes; ``dense_bytes``: the whole model in 16 bits, which is
    also what a ``dense`` checkpoint of a 16-bit model takes.
    """

    modules: dict[str, Storage]
    formats: dict[str, FormatTotal]
    code_bits: float
    effective_bits: float
    packed_bytes: int
    dense_bytes: int


def storage(module: LinearModule, format: Format | Keep) -> Storage:
    """What ``module`` takes in ``format``."""
    if isinstance(format, Keep):
        return Storage(module.weights, module.weights * _WORD, 0, 0)
    groups = module.out_features * format.groups(module.in_features)
    return Storage(
        weights=module.weights,
        codes=module.weights * format.bits,
        scales=groups * _WORD,
        zeros=0 if format.symmetric else groups * format.bits,
    )


def account(plan: Plan, inventory: Inventory) -> Account:
    """Bits and bytes of a model under ``plan``.

    Raises UserError where the plan's modules are not the model's.
    """
    check_modules(plan, inventory, f"plan for {plan.model}")
    formats = plan.formats
    modules = {module.address: storage(module, formats[module.address]) for module in inventory.linears}
    total = _total(modules.values())
    other = sum(inventory.other.values())
    return Account(
        modules=modules,
        formats=_by_format(inventory, formats),
        code_bits=total.code_bits,
        effective_bits=total.effective_bits,
        packed_bytes=sum(item.bytes for item in modules.values()) + other * _WORD // 8,
        dense_bytes=(total.weights + other) * _WORD // 8,
    )


def _total(items: Iterable[Storage]) -> Storage:
    listed = list(items)
    return Storage(
        weights=sum(item.weights for item in listed),
        codes=sum(item.codes for item in listed),
        scales=sum(item.scales for item in listed),
        zeros=sum(item.zeros for item in listed),
    )


def _by_format(inventory: Inventory, formats: dict[str, Format | Keep]) -> dict[str, FormatTotal]:
    totals: dict[str, FormatTotal] = {}
    for module in inventory.linears:
        name = str(formats[module.address])
        so_far = totals.get(name, FormatTotal(0, 0))
        totals[name] = FormatTotal(so_far.modules + 1, so_far.weights + module.weights)
    return totals
