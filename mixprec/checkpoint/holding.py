"""Which plans a checkpoint format holds, and why not: arithmetic on shapes and bits, without any tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from mixprec.checkpoint import integers, packings
from mixprec.checkpoint.names import check_format
from mixprec.checkpoint.packings.awq import BITS, PER_WORD
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import KEEP, AffineFormat, Format, GridFormat
from mixprec.plan.schema import Plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BITS: Final = (2, 3, 4, 8)
_MULTIPLE: Final = 32


def dense(plan: Plan, inventory: Decoder) -> dict[str, str]:
    """Every plan."""
    return {}


def compressed_tensors(plan: Plan, inventory: Decoder) -> dict[str, str]:
    """Address -> why compressed-tensors can't hold it."""

    def shared(module: Linear, format: Format) -> str | None:
        if module.kind == "embedding" and inventory.tied:
            return f"{format}: no reader takes a packed embedding that is the head too; write gguf or dense, or keep it"
        return None

    return integers.problems(plan, inventory, shared)


def gptq(plan: Plan, inventory: Decoder) -> dict[str, str]:
    """Address -> why GPTQ's layout can't hold it."""
    return integers.problems(plan, inventory, _gptq)


def _gptq(module: Linear, format: Format) -> str | None:
    if module.kind == "embedding":
        return f"{format}: GPTQ's layout is of linear modules, which an embedding is not; keep it"
    if format.bits not in _BITS:
        return f"{format}: GPTQ's layout has {', '.join(map(str, _BITS))} bits"
    if module.in_features % _MULTIPLE or module.out_features % _MULTIPLE:
        shape = f"{module.out_features} x {module.in_features}"
        return f"{format}: GPTQ's readers want rows and columns in multiples of {_MULTIPLE}, it is {shape}; keep it"
    return None


def awq(plan: Plan, inventory: Decoder) -> dict[str, str]:
    """Address -> why AutoAWQ's layout can't hold it."""
    found = integers.problems(plan, inventory, _awq)
    size, other = integers.common_group(plan, inventory)
    for address in other:
        found.setdefault(address, f"{plan.formats[address]}: AWQ has one group size for all modules, most have {size}")
    return found | _ambiguous(plan, inventory)


def _awq(module: Linear, format: Format) -> str | None:
    if not module.layer:
        return f"{format}: AWQ's readers take no packed {module.kind}; keep it"
    if format.bits != BITS or format.symmetric:
        takes = Format(BITS, format.group_size, symmetric=False)
        return f"{format}: AWQ's layout has 4 bits with zero points; take {takes}, or keep it"
    if module.out_features % PER_WORD:
        return f"{format}: AWQ packs rows by {PER_WORD}, the matrix has {module.out_features}; keep it"
    return None


def _ambiguous(plan: Plan, inventory: Decoder) -> dict[str, str]:
    """Packed modules that readers take for kept: a kept one's name, which they look for, is the beginning of theirs."""
    kept = {module.address for module in inventory.linears if plan.formats.get(module.address) is KEEP}
    begins = {
        address: address[:end] for address in plan.changed for end in range(len(address)) if address[:end] in kept
    }
    return {
        address: f"AWQ's readers take it for kept, as its name begins with {other}; keep both or none"
        for address, other in begins.items()
    }


def mlx(plan: Plan, inventory: Decoder) -> dict[str, str]:
    """Address -> why MLX's layout can't hold it."""
    return integers.problems(plan, inventory, _mlx, (Format, AffineFormat))


def _mlx(module: Linear, format: GridFormat) -> str | None:
    if format.bits not in packings.mlx.BITS:
        return f"{format}: MLX has {', '.join(map(str, packings.mlx.BITS))} bits"
    if format.width(module.in_features) not in packings.mlx.GROUPS:
        return f"{format}: MLX has groups of {', '.join(map(str, packings.mlx.GROUPS))}"
    return None


_HELD: Final[dict[str, Callable[[Plan, Decoder], dict[str, str]]]] = {
    "dense": dense,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
    "mlx": mlx,
}


def problems(
    name: str,
    plan: Plan,
    inventory: Decoder,
    config: PretrainedConfig | None,
) -> dict[str, str]:
    """Address -> why the format ``name`` can't hold the module; empty where it holds the plan.

    ``config``: for gguf alone. Raises UserError for an unknown format.
    """
    if name in _HELD:
        return _HELD[name](plan, inventory)
    check_format(name)
    # Asks llama.cpp's own package what it knows, and brings torch.
    from mixprec.checkpoint.gguf.holding import problems as in_gguf

    assert config is not None
    return in_gguf(plan, inventory, config)


def require(name: str, found: Mapping[str, str]) -> None:
    """The format ``name`` holds the plan of which ``problems`` has ``found``.

    Raises UserError with every reason, its first module and how many more there are.
    """
    gathered: dict[str, list[str]] = {}
    for address, reason in found.items():
        gathered.setdefault(reason, []).append(address)
    lines = [
        f"{each[0]}{f' and {len(each) - 1} more' if len(each) > 1 else ''}: {why}" for why, each in gathered.items()
    ]
    if lines:
        raise UserError(
            "\n  ".join([f"checkpoint.format: {name} can't hold this plan; dense holds every plan", *lines])
        )
