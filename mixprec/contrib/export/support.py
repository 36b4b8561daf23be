"""What a target can hold, and the plan checked against it before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import WHOLE_ROW, AnyFormat, Format, Keep
from mixprec.plan.schema import Plan, check_modules


@dataclass(frozen=True)
class Support:
    """Formats that ``target`` holds.

    ``symmetric`` and ``asymmetric``: bits. ``group_sizes``: None for any. ``ragged``: whether groups may fail to divide
    the columns, the last one being smaller. ``multiple``: rows and columns have to be multiples of it.
    """

    target: str
    symmetric: frozenset[int]
    asymmetric: frozenset[int]
    group_sizes: frozenset[int] | None = None
    ragged: bool = False
    multiple: int = 1

    def problem(self, module: Linear, format: Format) -> str | None:
        """Why ``target`` can't hold ``module`` in ``format``, with what it can; None where it does."""
        held = self.symmetric if format.symmetric else self.asymmetric
        if format.bits not in held:
            return f"{self.target} holds {self._bits()}"
        columns, group = module.in_features, format.group_size
        if self.group_sizes is not None and group not in self.group_sizes:
            sizes = ", ".join(str(size) for size in sorted(self.group_sizes) if size != WHOLE_ROW)
            return f"{self.target} holds groups of {sizes}{' or whole rows' if WHOLE_ROW in self.group_sizes else ''}"
        if not self.ragged and group != WHOLE_ROW and columns % group:
            return f"{self.target} wants groups that divide the {columns} columns"
        if columns % self.multiple or module.out_features % self.multiple:
            shape = f"{module.out_features} x {columns}"
            return f"{self.target} leaves {shape} matrices as they are: it wants multiples of {self.multiple}"
        return None

    def _bits(self) -> str:
        kinds = (("symmetric", self.symmetric), ("asymmetric", self.asymmetric))
        return " and ".join(f"{_list(bits)} bits {name}" for name, bits in kinds if bits)


def _list(bits: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(bits)))


def gathered(plan: Plan, inventory: Decoder, support: Support) -> dict[Format | Keep, list[str]]:
    """Format -> addresses: the most frequent format first, those of equal number in the model's order.

    Raises UserError naming each format that the target can't hold, its modules and what it can hold.
    """
    check_modules(plan, inventory, f"plan for {plan.model}")
    check_inside(plan, inventory, support.target)
    check_all_stay(plan, support.target)
    found: dict[Format | Keep, list[str]] = {}
    problems: dict[tuple[str, str], list[str]] = {}
    formats = plan.formats
    for module in inventory.linears:
        format = formats[module.address]
        problem = _problem(plan, module, format, support)
        if problem:
            problems.setdefault((str(format), problem), []).append(module.address)
        elif isinstance(format, Format | Keep):
            found.setdefault(format, []).append(module.address)
    if problems:
        raise UserError("\n  ".join(_describe(*key, addresses) for key, addresses in problems.items()))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def check_inside(plan: Plan, inventory: Decoder, target: str) -> None:
    """A plan changes nothing but linear modules of the blocks. Raises UserError naming what else it changes."""
    outside = [linear.address for linear in inventory.outside if linear.address in plan.changed]
    if outside:
        raise UserError(f"{outside[0]}: the {target} export is of the blocks' linear modules; leave out this line")


def check_all_stay(plan: Plan, target: str) -> None:
    """A plan drops no experts. Raises UserError."""
    if plan.dropped:
        raise UserError(
            f"{min(plan.dropped)}: dropped; {target} can't be told to leave out experts. Write the model without them "
            "first (mixprec compress with a plan of keep and drop), and plan for that one"
        )


def _problem(plan: Plan, module: Linear, format: AnyFormat, support: Support) -> str | None:
    treatment = plan.treatments[module.address]
    if treatment.sparsity is not None:
        return f"{support.target} can't be told to prune single modules"
    if isinstance(format, Keep):
        return None
    if not isinstance(format, Format):
        return f"{support.target} holds integers in groups only"
    if treatment.method != plan.method:
        return f"{support.target} can't be told to treat single modules with {treatment.method}"
    return support.problem(module, format)


def _describe(format: str, problem: str, addresses: Sequence[str]) -> str:
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return f"{addresses[0]}{more}: {format}: {problem}; keep them or give them another format"


def base_format(formats: Iterable[Format | Keep]) -> Format:
    """The first format that is not keep, for targets whose configuration needs one for everything else.

    Raises UserError where every module is kept.
    """
    found = next((format for format in formats if isinstance(format, Format)), None)
    if found is None:
        raise UserError("the plan keeps every module: there is nothing to export")
    return found
