"""Which plans a checkpoint format holds, and why not: arithmetic on shapes and bits, without any tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from mixprec.checkpoint import integers
from mixprec.checkpoint.names import check_format
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import Format
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


_HELD: Final[dict[str, Callable[[Plan, Decoder], dict[str, str]]]] = {
    "dense": dense,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
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
