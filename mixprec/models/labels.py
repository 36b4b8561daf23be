"""Addresses, the paper's labels, and selectors: for whatever has an address, a layer and a kind, of any family.

What an address says is read off its words, so that files of any model can be shown without its configuration.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, TypeVar

from mixprec.core.errors import UserError

#: Kinds of linear modules in the order of the paper's heatmap rows.
KINDS: Final = ("q", "k", "v", "o", "gate", "up", "down")
#: Kinds whose outputs attention's scores are made of.
COMPARED: Final = frozenset({"q", "k"})
#: Parts of a block that selectors name, and which kinds each has in a dense block of softmax attention.
KIND_GROUPS: Final[dict[str, tuple[str, ...]]] = {"attn": KINDS[:4], "mlp": KINDS[4:], "*": KINDS}
#: What selectors may name instead of a kind: parts of a block, its routed experts, and those that all tokens take.
PARTS: Final = ("attn", "mixer", "mlp", "experts", "shared")
#: Linear modules whose names don't say their kinds.
_NAMED: Final = {
    "w1": "gate", "w2": "down", "w3": "up", "fc1": "up", "fc2": "down", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
    "c_fc": "up", "input_linear": "gate_up", "output_linear": "down", "query_key_value": "qkv", "Wqkv": "qkv",
    "kv_a_proj_with_mqa": "kv_a", "out_proj": "o", "dense": "o", "c_proj": "down",
}  # fmt: skip
#: Of these, those that mean something else outside attention.
_OF_ATTENTION: Final = frozenset({"out_proj", "dense"})
#: What some architectures call attention, MLP and recurrence alike.
_ANY: Final = "mixer"
#: At most so many modules are compared with a selector that matches none.
_LOOKED_AT: Final = 2_000
_INSIDE: Final = re.compile(r"(?:\w+\.)*?(?:layers|h|blocks)\.(\d+)\.(.+)", re.DOTALL)
_EXPERT: Final = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_SHARED: Final = re.compile(r"(?:^|\.)shared_(?:expert|experts|mlp)\.")
_ATTENTION: Final = re.compile(r"attn|attention")
_MLP: Final = re.compile(r"mlp|feed_forward|ffn|moe|experts")
_LABEL: Final = re.compile(r"(?P<layer>\d+|last|\*)_(?P<kind>[A-Za-z0-9_.]+?|\*)(?:\.e(?P<expert>\d+|\*))?")


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


class Place(NamedTuple):
    """What an address says. ``layer``: 1-based, None outside the blocks; ``part``: attn, mlp, or mixer for what else
    mixes tokens, such as convolutions and recurrences; ``expert``: the number of a routed one; ``shared``: whether all
    tokens take it beside the routed ones."""

    layer: int | None
    kind: str
    part: str = ""
    expert: int | None = None
    shared: bool = False

    @property
    def label(self) -> str:
        """The paper's label, 1-based: ``32_up``, of an expert ``32_up.e7``; outside the blocks the kind alone."""
        if not self.layer:
            return self.kind
        return f"{self.layer}_{self.kind}" + ("" if self.expert is None else f".e{self.expert}")


@functools.lru_cache(maxsize=1 << 17)
def place_of(name: str) -> Place:
    """What a module's full name says.

    Other modules than linear ones are their own kind, and outside the blocks there is no layer: (None, "norm").
    """
    inside = _INSIDE.fullmatch(name)
    if inside is None:
        return Place(None, name.rpartition(".")[2])
    layer, path = int(inside[1]) + 1, inside[2]
    expert, shared = _EXPERT.search(path), _SHARED.search(path)
    kind, part = kind_of(path)
    return Place(layer, f"shared_{kind}" if shared else kind, part, int(expert[1]) if expert else None, bool(shared))


def kind_of(path: str) -> tuple[str, str]:
    """(kind, part) of a module by its path within a block; what has no linear module's name is its own kind."""
    where, _, leaf = path.rpartition(".")
    attention = _ATTENTION.search(where) is not None and "linear" not in where
    if leaf in _NAMED and (attention or leaf not in _OF_ATTENTION):
        kind = "o" if attention and _NAMED[leaf] == "down" else _NAMED[leaf]
    elif "proj" in leaf:
        kind = leaf.replace("_proj", "")
    else:
        kind = path
    parent = where.rpartition(".")[2]
    if attention and kind != path and not _ATTENTION.search(parent) and "proj" not in parent:
        kind = f"{parent}_{kind}"  # of a part of attention, such as what chooses the keys that it looks at
    elif attention and kind in KINDS[4:]:  # such as the gate on attention's output: the MLP has one of its own
        kind = f"attn_{kind}"
    if attention or (where == _ANY and kind in KINDS[:4]):
        return kind, "attn"
    return kind, "mlp" if _MLP.search(where) or (where == _ANY and kind in KINDS[4:]) else "mixer"


def parse_address(name: str) -> tuple[int | None, str]:
    """(1-based layer, kind) of a module's full name, as ``place_of``."""
    return place_of(name)[:2]


def label_of(name: str) -> str:
    """The paper's label of a module's full name: ``32_up``; outside the blocks the kind alone."""
    return place_of(name).label


def kinds_among(kinds: Iterable[str]) -> list[str]:
    """Kinds in the order of a heatmap's rows: the paper's, then others as they come."""
    found = dict.fromkeys(kinds)
    return [kind for kind in KINDS if kind in found] + [kind for kind in found if kind not in KINDS]


def select(
    modules: Sequence[_Named], selector: str, outside: Mapping[str, _Named] = MappingProxyType({})
) -> list[_Named]:
    """Modules that a selector names, in order.

    A selector is a label as the paper writes it (``32_up``, of an expert ``32_up.e7``), with ``last`` or ``*`` for the
    layer, ``*`` for the expert, and ``attn``, ``mlp``, ``mixer``, ``experts``, ``shared`` or ``*`` for the kind
    (``last_mlp``, ``*_gate``, ``12_experts``, ``*_up.e*``), or a glob over addresses (``model.layers.3?.mlp.*``).
    A kind means all experts of a layer where none is named; ``experts`` alone are those of all layers, and so are
    ``shared``. What is ``outside`` the blocks is meant by its names there alone (``embedding``).

    Raises UserError where it matches nothing, with what was most likely meant.
    """
    if selector in outside:
        return [outside[selector]]
    label = _LABEL.fullmatch(f"*_{selector}" if selector in ("experts", "shared") else selector)
    found: list[_Named] = []
    if label:
        last = max(module.layer for module in modules)
        layer = label["layer"]
        layers = set(range(1, last + 1)) if layer == "*" else {last if layer == "last" else int(layer)}
        inside = [module for module in modules if module.layer in layers]
        found = [module for module in inside if _is_meant(place_of(module.address), label["kind"], label["expert"])]
    if not found:  # *_proj.weight may be either: kinds of modules that no name is known of have dots
        found = [module for module in modules if fnmatch.fnmatchcase(module.address, selector)]
    if not found:
        more = f", and {', '.join(name for name in outside if '.' not in name)}" if outside else ""
        raise UserError(f"selector {selector!r} matches no module; {_suggest(modules, selector)}{more}")
    return found


def _is_meant(place: Place, kind: str, expert: str | None) -> bool:
    if expert is not None and (place.expert is None or expert not in ("*", str(place.expert))):
        return False
    if kind == "experts":
        return place.expert is not None
    if kind == "shared":
        return place.shared
    return kind in ("*", place.kind, place.part)


def _suggest(modules: Sequence[Named], selector: str) -> str:
    names = [name for module in modules for name in (module.label, module.address)]
    last, places = names[-2].split("_")[0], [place_of(module.address) for module in modules]
    near = difflib.get_close_matches(selector, names[: 2 * _LOOKED_AT], n=3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    kinds = kinds_among(place.kind for place in places)
    parts = [part for part in PARTS if any(_is_meant(place, part, None) for place in places)]
    return (
        f"{hint}layers are 1 to {last}, kinds {', '.join([*kinds, *parts])}; "
        f"labels such as {last}_{kinds[-1]}, last_{parts[-1]}, *_{kinds[0]}, or a glob such as "
        f"{names[1].replace('.0.', '.*.')}"
    )
