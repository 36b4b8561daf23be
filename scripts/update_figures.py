"""Write measured figures into sentences and tables of the documents. python scripts/update_figures.py [--check]

A figure is followed by a comment that names its file in benchmarks/results/ and its key there:
``0.75<!--allocation:kl_ratio_325-->``. It keeps its form: as many decimals as it has, a percentage where it is one,
brackets around an interval. tests/test_typed_figures.py says which figures need one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = re.compile(r"(?P<text>\[[^\]\n]*\]|[-−+]?\d[\d,]*(?:\.\d+)?%?)<!--(?P<file>\w+):(?P<key>[^>\n]+?)-->")
_NUMBER = re.compile(r"[-−+]?\d[\d,]*(?:\.\d+)?%?")


def pages() -> Iterator[Path]:
    """All documents that people write."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


@cache
def _results(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    return found


def value(file: str, key: str) -> Any:
    """What was measured; a key in parts reads ``kl.gptq_w3g64``, and a part may hold dots itself.

    Raises SystemExit where it isn't there, or wasn't measured.
    """
    found: Any = _results(file)
    rest = key
    while rest:
        part = next((name for name in sorted(found, key=len, reverse=True) if f"{rest}.".startswith(f"{name}.")), None)
        if part is None:
            raise SystemExit(f"benchmarks/results/{file}.json has no {key}")
        found, rest = found[part], rest[len(part) + 1 :]
    if found is None:
        raise SystemExit(f"benchmarks/results/{file}.json: {key} was not measured")
    return found


def written(text: str, measured: Any) -> str:
    """``measured`` in the form of ``text``."""
    if text.startswith("["):
        parts = iter(measured)
        return _NUMBER.sub(lambda match: written(match[0], next(parts)), text)
    factor = 100 if text.endswith("%") else 1
    decimals = len(text.rstrip("%").partition(".")[2])
    made = f"{measured * factor:,.{decimals}f}" if "," in text else f"{measured * factor:.{decimals}f}"
    made = made.replace("-", "−") if "−" in text or (measured < 0 and "-" not in text) else made
    return f"{'+' if text.startswith('+') and measured > 0 else ''}{made}{'%' if factor == 100 else ''}"


def filled(text: str) -> str:
    """A document with its figures as they were measured."""
    return FIGURE.sub(
        lambda match: (
            f"{written(match['text'], value(match['file'], match['key']))}<!--{match['file']}:{match['key']}-->"
        ),
        text,
    )


def main() -> None:
    """Write all pages, or with --check say which are stale."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        made = filled(text)
        if made != text and "--check" in sys.argv:
            raise SystemExit(f"{page.relative_to(ROOT)}: is stale; run python scripts/update_figures.py")
        if made != text:
            page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
