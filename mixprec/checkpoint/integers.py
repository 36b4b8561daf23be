"""What the packed formats share: integer grids, grouped by format, and why a module can't be held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mixprec.checkpoint.packings.packing import Packing
from mixprec.core.errors import UserError
from mixprec.core.headers import Entry
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import WHOLE_ROW, AffineFormat, AnyFormat, CodebookFormat, Drop, Format, GridFormat, Keep
from mixprec.plan.schema import Plan

#: (module, its format) -> why a packed format can't hold it, or None.
Problem = Callable[[Linear, Any], str | None]


def problems(plan: Plan, inventory: Decoder, problem: Problem, kinds: tuple[type, ...] = (Format,)) -> dict[str, str]:
    """Address -> why no packed format of ``kinds`` of grids, or this one by ``problem``, can hold the module."""
    found = {}
    for module in inventory.planned(plan.modules):
        treatment = plan.treatments[module.address]
        if treatment.sparsity is not None:
            found[module.address] = "zeros are not packed; pruned modules are written dense"
        elif isinstance(treatment.format, kinds):
            assert isinstance(treatment.format, GridFormat)
            reason = ragged(module, treatment.format) or problem(module, treatment.format)
            if reason:
                found[module.address] = reason
        elif not isinstance(treatment.format, Keep | Drop):
            found[module.address] = _foreign(treatment.format)
    return found


def _foreign(format: AnyFormat) -> str:
    if isinstance(format, CodebookFormat):
        return f"{format}: code books are not packed; any formats are written dense"
    if isinstance(format, AffineFormat):
        return f"{format}: only MLX's layout has offsets of 16 bits; write mlx or dense, or take {_nearest(format)}"
    return f"{format}: a type of llama.cpp's; it is packed in GGUF, or written dense"


def _nearest(format: AffineFormat) -> Format:
    return Format(format.bits, format.group_size, symmetric=False)


def grid(format: AnyFormat) -> Format:
    """``format``, of a module that is to be packed. Raises UserError for what packed formats don't hold."""
    if not isinstance(format, Format):
        raise UserError(f"checkpoint.format: {_foreign(format)}")
    return format


def tensors(packing: Packing) -> Callable[[Linear, AnyFormat, str], dict[str, Entry]]:
    """(module, its format, the type of the source's weight) -> the tensors that are packed, by their full names."""

    def found(module: Linear, format: AnyFormat, dtype: str) -> dict[str, Entry]:
        inside = packing.tensors(module, format if isinstance(format, packing.kinds) else grid(format), dtype)
        return {f"{module.address}.{name}": entry for name, entry in inside.items()}

    return found


def ragged(module: Linear, format: GridFormat) -> str | None:
    """Why groups that don't divide the columns can't be held: no reader knows a smaller last group."""
    columns = module.in_features
    size = format.width(columns)
    if columns % size == 0:
        return None
    fits = [str(2**power) for power in range(4, 11) if columns % 2**power == 0 and 2**power < columns]
    hint = f"groups of {', '.join(fits)} do" if fits else "take whole rows"
    return f"{format}: groups of {size} do not divide {columns} columns; {hint}"


def effective(module: Linear, format: GridFormat) -> GridFormat:
    """``format`` with groups as wide as a row, or wider, as whole rows: to readers they are the same."""
    whole = format.width(module.in_features) == module.in_features
    return replace(format, group_size=WHOLE_ROW if whole else format.group_size)


def common_group(plan: Plan, inventory: Decoder) -> tuple[int, list[str]]:
    """The size of the groups of most packed modules, WHOLE_ROW where all of them are whole rows; and the addresses of
    those that have another one."""
    formats = {m: f for m in inventory.planned(plan.modules) if isinstance(f := plan.formats[m.address], Format)}
    narrow = Counter(f.group_size for m, f in formats.items() if f.width(m.in_features) < m.in_features)
    size = narrow.most_common(1)[0][0] if narrow else WHOLE_ROW
    other = [
        m.address for m, f in formats.items() if f.width(m.in_features) != Format(f.bits, size).width(m.in_features)
    ]
    return size, other


def by_format(plan: Plan, inventory: Decoder) -> tuple[dict[Format, list[str]], list[str]]:
    """Format -> addresses, the most frequent first, those of equal number in the model's order; and the linears of the
    blocks that are kept."""
    found: dict[Format, list[str]] = {}
    kept = []
    for module in inventory.planned(plan.modules):
        format = plan.formats[module.address]
        if isinstance(format, Keep | Drop):
            kept += [module.address] if module.layer else []  # nobody takes what is outside for packed unsaid
        else:
            assert isinstance(format, Format)  # problems() refuses all others
            narrow = effective(module, format)
            assert isinstance(narrow, Format)
            found.setdefault(narrow, []).append(module.address)
    return dict(sorted(found.items(), key=lambda item: -len(item[1]))), kept
