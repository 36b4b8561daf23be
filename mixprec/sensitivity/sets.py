"""Which sets of modules an ablation measures, in which formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.labels import select
from mixprec.sensitivity.spec import AblationSpec


class Cell(NamedTuple):
    """The modules ``addresses``, together called ``name``, as ``candidate`` has them; none of them: the control."""

    name: str
    candidate: str
    addresses: tuple[str, ...]


CONTROL: Final = Cell("no change", "keep", ())


def cells_of(spec: AblationSpec, inventory: Decoder) -> list[Cell]:
    """All sets in all formats, in order; a set that is one module of ``each`` is not measured twice.

    Raises UserError for selectors that match nothing, and for a set that has another module's name.
    """
    found: dict[tuple[str, ...], str] = {}
    if spec.each is not None:
        found |= {(module.address,): module.label for module in _joined(inventory, spec.each)}
    for name, selectors in spec.sets.items():
        addresses = tuple(module.address for module in _joined(inventory, selectors))
        taken = next((known for known, its in found.items() if its == name and known != addresses), None)
        if taken is not None:
            raise UserError(f"ablation.sets: {name}: the module {taken[0]} has this name too; choose another one")
        found.setdefault(addresses, name)
    return [Cell(name, str(choice), addresses) for choice in spec.formats for addresses, name in found.items()]


def _joined(inventory: Decoder, selectors: Sequence[str]) -> list[Linear]:
    wanted = {module.address for selector in selectors for module in select(inventory.linears, selector)}
    return [module for module in inventory.linears if module.address in wanted]
