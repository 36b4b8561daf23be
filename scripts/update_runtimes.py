"""Write the table of what runtimes load into docs/checkpoints.md. python scripts/update_runtimes.py [--check]"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import generated

from mixprec.checkpoint.facts import FACTS, RUNTIMES
from mixprec.checkpoint.loaders import Fact, Loader
from mixprec.checkpoint.names import FORMAT_NAMES
from mixprec.numerics.formats import WHOLE_ROW

PAGE = Path(__file__).parents[1] / "docs" / "checkpoints.md"
_PLACES = {"cuda": "GPUs", "apple": "Apple", "cpu": "CPUs"}


def _bits(bits: Iterable[int]) -> str:
    """2 to 8, or 4, 8."""
    listed = sorted(bits)
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]} to {listed[-1]}"
    return ", ".join(map(str, listed))


def _loads(loads: Loader, format: str) -> str:
    """Bits by kind of grid, and groups."""
    if format in ("dense", "gguf"):
        return "what the format holds"
    kinds: dict[frozenset[int], list[str]] = {}
    for kind, bits in (("symmetric", loads.symmetric), ("asymmetric", loads.asymmetric), ("offsets", loads.affine)):
        if bits:
            kinds.setdefault(bits, []).append(kind)
    parts = [f"{_bits(bits)} {' or '.join(names)}" for bits, names in kinds.items()]
    used = {frozenset(loads.groups[bits]) for bits in loads.symmetric | loads.asymmetric if bits in loads.groups}
    for groups in used:
        width = [bits for bits in sorted(loads.symmetric | loads.asymmetric) if loads.groups.get(bits) == groups]
        every = len(width) == len(loads.symmetric | loads.asymmetric)
        sizes = ", ".join(
            "rows" if size == WHOLE_ROW else str(size) for size in sorted(groups, key=lambda s: s % 2**31)
        )
        parts.append(f"groups of {sizes}{'' if every else f' in {_bits(width)} bits'}")
    return "; ".join(parts)


def _besides(loads: Loader) -> str:
    """What else is asked for, or loaded."""
    parts = [
        f"compute capability {loads.capability / 10}" if loads.capability else "",
        "one format for q/k/v, for gate/up" if loads.fused else "",
        "one format for all packed modules" if loads.uniform else "",
        f"rows and columns in multiples of {loads.multiple}" if loads.multiple > 1 else "",
        *(f"{kind}: {_outside(other, loads)}" for kind, other in loads.outside.items()),
        f"needs {loads.needs}" if loads.needs else "",
    ]
    return "; ".join(part for part in parts if part)


def _outside(other: Loader, loads: Loader) -> str:
    """What is loaded of a packed embedding or head, where ``loads`` is of linears."""
    return "as linears" if _loads(other, "") == _loads(loads, "") else _loads(other, "").replace(";", ",")


def _since(fact: Fact) -> str:
    """From which version on, and before which, where others have other facts."""
    same = [f for f in FACTS if (f.runtime, f.format) == (fact.runtime, fact.format) and set(f.where) & set(fact.where)]
    later = sorted(f.since for f in same if f.since > fact.since)
    text = f" from {'.'.join(map(str, fact.since))}" if fact.since != (0,) else ""
    return text + (f" before {'.'.join(map(str, later[0]))}" if later else "")


def table() -> str:
    """All facts, format by format."""
    lines = ["| format | runtime | where | loads | besides | read or seen in |", "|---|---|---|---|---|---|"]
    for name in FORMAT_NAMES:
        for fact in (fact for fact in FACTS if fact.format == name):
            where = "all" if len(fact.where) == len(_PLACES) else ", ".join(_PLACES[each] for each in fact.where)
            loads = f"no: {fact.loads.refuses}" if fact.loads.refuses else _loads(fact.loads, name)
            runtime = RUNTIMES[fact.runtime].title + _since(fact)
            lines.append(f"| {name} | {runtime} | {where} | {loads} | {_besides(fact.loads)} | {fact.source} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/checkpoints.md as the facts have it."""
    return generated.filled(PAGE, "runtimes", table())


if __name__ == "__main__":
    generated.main(PAGE, page)
