"""Write the findings on a small model into docs/reproduction.md. python scripts/update_reproduction.py [--check]

They are those of benchmarks/results/reproduction.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import generated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduction.md"
FIGURES = ROOT / "benchmarks" / "results" / "reproduction.json"
#: Verdict -> what the page says, in the order of the counts.
VERDICTS = {
    "holds": "holds",
    "fails": "does not hold",
    "open": "open",
    "undecidable": "can't be decided at this scale",
}
NOT_RUN = "not run"


def block(figures: Mapping[str, Any] | None) -> str:
    """All that is generated; None: there are no figures yet."""
    if figures is None:
        return "The run was not made yet.\n"
    findings = figures["findings"]
    lines = [*_lead(figures), "", "| the paper says | where | here |", "|---|---|---|"]
    for number, (claim, found) in enumerate(findings.items(), 1):
        lines.append(f"| {number}. {claim} | {found['paper'] if found else ''} | **{_verdict(found)}** |")
    for number, (claim, found) in enumerate(findings.items(), 1):
        lines += ["", f"### {number}. {claim[0].upper()}{claim[1:]}", "", *_finding(found)]
    return "\n".join(lines) + "\n"


def _lead(figures: Mapping[str, Any]) -> Iterator[str]:
    counts = [f"{words}: {figures[key]}" for key, words in VERDICTS.items() if figures.get(key)]
    missing = sum(found is None for found in figures["findings"].values())
    counts += [f"{NOT_RUN}: {missing}"] if missing else []
    yield f"{len(figures['findings'])} findings on {figures['model']}; {', '.join(counts)}."
    if figures.get("quick"):
        yield "This was a quick run: few questions and passages, so that intervals are wide."


def _verdict(found: Mapping[str, Any] | None) -> str:
    return VERDICTS[found["verdict"]] if found else NOT_RUN


def _finding(found: Mapping[str, Any] | None) -> Iterator[str]:
    """A verdict with what it is made of."""
    if found is None:
        yield "Its recipe was not run."
        return
    recipe = found.get("recipe")
    if recipe:
        path = f"../recipes/small/{recipe}.yaml"
        yield f"**{_verdict(found).capitalize()}.** {found['paper']}; recipe [small/{recipe}]({path})."
    else:
        yield f"**{_verdict(found).capitalize()}.** {found['paper']}. The reason: {found['why']}."
    rows = list(_rows(found.get("numbers") or {}))
    if rows:
        yield from ("", "| measured | value | 95% interval |", "|---|--:|--:|", *rows)


def _rows(numbers: Mapping[str, Any]) -> Iterator[str]:
    for name, value in numbers.items():
        if isinstance(value, Mapping) and "ci" in value:
            measured = value.get("difference", value.get("value"))
            yield f"| {_words(name)} | {_number(measured)} | {_interval(value['ci'])} |"
        elif isinstance(value, Mapping):  # what is said of several, such as the benchmarks
            told = ", ".join(f"{_words(key)}: {'none' if one is None else _code(one)}" for key, one in value.items())
            yield f"| {_words(name)} | {told} | |"
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"| {_words(name)} | {', '.join(f'{100 * each:.1f}%' for each in value)} | |"
        else:
            yield f"| {_words(name)} | {_number(value)} | |"


def _words(name: str) -> str:
    """Names of variants and benchmarks as code, all else as it is."""
    return re.sub(r"\b(\w*_\w+|any[34])\b", r"`\1`", name)


def _code(name: Any) -> str:
    return f"`{name}`"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(int(value)) if float(value).is_integer() else f"{value:.3g}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "–" if bounds is None else f"[{_number(bounds[0])}, {_number(bounds[1])}]"


def page() -> str:
    """docs/reproduction.md as the figures have it."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else None
    return generated.filled(PAGE, "reproduction", block(figures))


if __name__ == "__main__":
    generated.main(PAGE, page)
