"""Addresses, the paper's labels, and selectors: for whatever has an address, a layer and a kind, of any family."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

from mixprec.core.errors import UserError
from mixprec.models.arch import FAMILIES

_PARTS: Final = [(part, row) for family in FAMILIES.values() for part, rows in family.parts.items() for row in rows]
#: Kinds of linear modules in the order of the paper's heatmap rows.
KINDS: Final = tuple(dict.fromkeys(row.kind for _, row in _PARTS))
#: Short names for several kinds at once, as in ``last_mlp``.
KIND_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(dict.fromkeys(row.kind for part, row in _PARTS if part == name))
    for name in dict.fromkeys(part for part, _ in _PARTS)
} | {"*": KINDS}
#: Kinds whose outputs attention's scores are made of.
COMPARED: Final = frozenset(row.kind for _, row in _PARTS if row.compares)
#: Path within a block -> kind.
_KIND_OF: Final = {row.path: row.kind for _, row in _PARTS}
_BLOCKS: Final = "|".join(sorted({re.escape(family.blocks) for family in FAMILIES.values()}))
_INSIDE: Final = re.compile(rf"(?:{_BLOCKS})\.(\d+)\.(.+)", re.DOTALL)
_LABEL: Final = re.compile(r"(?P<layer>\d+|last|\*)_(?P<kind>[a-z*]+)")


class Named(Protocol):
    """A linear module, or a row of a file that tells of one."""

    @property
    def address(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def label(self) -> str: ...


_Named = TypeVar("_Named", bound=Named)


def parse_address(name: str) -> tuple[int | None, str]:
    """(1-based layer, kind) of a module's full name.

    Other modules than linear ones are their own kind, and outside the blocks there is no layer: (None, "norm").
    """
    inside = _INSIDE.fullmatch(name)
    if inside is None:
        return None, name.rpartition(".")[2]
    return int(inside[1]) + 1, _KIND_OF.get(inside[2], inside[2])


def label_of(name: str) -> str:
    """The paper's label of a module's full name: ``32_up``; outside the blocks the kind alone."""
    layer, kind = parse_address(name)
    return f"{layer}_{kind}" if layer else kind


def select(
    modules: Sequence[_Named], selector: str, outside: Mapping[str, _Named] = MappingProxyType({})
) -> list[_Named]:
    """Modules that a selector names, in order.

    A selector is a label as the paper writes it (``32_up``), with ``last`` or ``*`` for the layer and ``attn``,
    ``mlp`` or ``*`` for the kind (``last_mlp``, ``*_gate``, ``last_*``), or a glob over addresses
    (``model.layers.3?.mlp.*``). What is ``outside`` the blocks is meant by its names there alone (``embedding``).

    Raises UserError where it matches nothing, with what was most likely meant.
    """
    if selector in outside:
        return [outside[selector]]
    label = _LABEL.fullmatch(selector)
    if label:
        last = max(module.layer for module in modules)
        layer = label["layer"]
        layers = set(range(1, last + 1)) if layer == "*" else {last if layer == "last" else int(layer)}
        kinds = KIND_GROUPS.get(label["kind"], (label["kind"],))
        found = [module for module in modules if module.layer in layers and module.kind in kinds]
    else:
        found = [module for module in modules if fnmatch.fnmatchcase(module.address, selector)]
    if not found:
        more = f", and {', '.join(name for name in outside if '.' not in name)}" if outside else ""
        raise UserError(f"selector {selector!r} matches no module; {_suggest(modules, selector)}{more}")
    return found


def _suggest(modules: Iterable[Named], selector: str) -> str:
    names = [name for module in modules for name in (module.label, module.address)]
    last = names[-2].split("_")[0]
    near = difflib.get_close_matches(selector, names, n=3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    parts = [name for name in KIND_GROUPS if name != "*"]
    return (
        f"{hint}layers are 1 to {last}, kinds {', '.join([*KINDS, *parts])}; "
        f"labels such as {last}_up, last_mlp, *_gate, or a glob such as {names[1].replace('.0.', '.*.')}"
    )
