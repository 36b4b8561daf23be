"""Sets of module names as a few patterns that match them and no other module.

Names differ in their first number, the block: model.layers.17.mlp.up_proj. Modules whose blocks are the same share a
pattern. Every target's syntax is either a regular expression or a glob, and both know [0-9].
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

_NUMBERED = re.compile(r"(?P<head>.*?\.)(?P<block>\d+)\.(?P<tail>.*)")


class Block(NamedTuple):
    """Modules with the same name but for the block: ``head`` model.layers., ``tails`` mlp.up_proj, ``blocks`` 0, 1."""

    head: str
    blocks: tuple[int, ...]
    tails: tuple[str, ...]


def blocks(addresses: Iterable[str]) -> list[Block]:
    """The names, gathered: every tail stands in one Block, tails with the same blocks stand together.

    Raises ValueError for a name without a block.
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    for address in addresses:
        match = _NUMBERED.fullmatch(address)
        if not match:
            raise ValueError(f"{address} stands in no block")
        numbers.setdefault((match["head"], match["tail"]), []).append(int(match["block"]))
    tails: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (head, tail), found in numbers.items():
        tails.setdefault((head, tuple(sorted(found))), []).append(tail)
    return [Block(head, found, tuple(names)) for (head, found), names in tails.items()]


def regexes(addresses: Iterable[str], dot: str = r"\.") -> list[str]:
    """Anchored regular expressions that together match exactly ``addresses`` among all names of modules.

    Alternatives, groups, classes and anchors only: Python, PCRE and ECMAScript read them alike. ``dot`` writes the dot
    between names.
    """
    listed = list(addresses)
    alone = [address for address in listed if not _NUMBERED.fullmatch(address)]
    found = [f"^{address.replace('.', dot)}$" for address in alone]
    for head, numbers, tails in blocks(address for address in listed if address not in alone):
        name = f"{head}{_either(number_globs(numbers))}.{_tails(tails)}"
        found.append(f"^{name.replace('.', dot)}$")
    return found


def globs(addresses: Iterable[str]) -> list[str]:
    """Globs (fnmatch, with classes, without alternatives) that together match exactly ``addresses``."""
    return [
        f"{head}{number}.{tail}"
        for head, numbers, tails in blocks(addresses)
        for tail in tails
        for number in number_globs(numbers)
    ]


def number_globs(numbers: Collection[int]) -> list[str]:
    """Decimal numbers as globs with classes: 0 to 15 and 21 are [0-9], 1[0-5] and 21."""
    digits: dict[int, set[int]] = {}
    for number in numbers:
        digits.setdefault(number // 10, set()).add(number % 10)
    tens: dict[str, list[int]] = {}
    for ten in sorted(digits):
        tens.setdefault(_class(digits[ten]), []).append(ten)
    return [
        f"{front}{last}"
        for last, found in tens.items()
        for front in ([""] if 0 in found else []) + number_globs([ten for ten in found if ten > 0])
    ]


def _class(digits: Collection[int]) -> str:
    """One of some digits: 5, [05], [0-59]."""
    runs: list[list[int]] = []
    for digit in sorted(digits):
        if runs and digit == runs[-1][-1] + 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else "".join(map(str, run)) for run in runs]
    return parts[0] if len(digits) == 1 else f"[{''.join(parts)}]"


def _tails(tails: Sequence[str]) -> str:
    """Alternatives of what follows the block: (self_attn.(q_proj|k_proj)|mlp.up_proj)."""
    parents: dict[str, list[str]] = {}
    for tail in tails:
        parent, _, name = tail.rpartition(".")
        parents.setdefault(parent, []).append(name)
    return _either([f"{parent}.{_either(names)}" if parent else _either(names) for parent, names in parents.items()])


def _either(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
