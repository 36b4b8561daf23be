"""RESULTS.md from the figures in benchmarks/results/*.json; nothing in it is typed.

python benchmarks/results.py [--check]

Every file was written by a benchmark's ``--json`` (machine.py says what is in it). What its keys mean is read from the
benchmark's docstring: lines of the form ``    key    meaning``, continued where the next line is indented further.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
_KEY = re.compile(r"^ {4}(\w+) {2,}(\S.*)$")
_MORE = re.compile(r"^ {5,}(\S.*)$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if RESULTS.md is not what the figures give")
    arguments = parser.parse_args()
    page, text = FOLDER / "RESULTS.md", render(FOLDER)
    if not arguments.check:
        page.write_text(text, encoding="utf-8")
    elif not page.is_file() or page.read_text(encoding="utf-8") != text:
        sys.exit(f"{page} is not what the figures give; run: python benchmarks/results.py")


def render(folder: Path) -> str:
    """The whole page."""
    sections = [section(json.loads(path.read_text(encoding="utf-8")), folder) for path in figures(folder)]
    intro = "Figures of one run each, made on one machine by the command above them. `python benchmarks/results.py`"
    return "\n".join(["# Results", "", f"{intro} writes this page from `benchmarks/results/`.", "", *sections])


def figures(folder: Path) -> list[Path]:
    """All files of figures, by name; rows that figures are made from are none."""
    return sorted(path for path in (folder / "results").glob("*.json") if not path.stem.endswith("_rows"))


def section(data: dict[str, Any], folder: Path) -> str:
    """One benchmark: its title, command, machine, and a row for each figure."""
    text = ast.get_docstring(ast.parse((folder / data["about"]["benchmark"]).read_text(encoding="utf-8"))) or ""
    title, _, body = text.partition("\n")
    known = meanings(text)
    about = body.strip().partition("\n\n")[2].partition("\n\nKeys of")[0]
    machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in data["about"]["machine"].items())
    rows = [
        f"| `{key}` | {number(value)} | {known.get(key.partition('.')[0], '')} |"
        for key, value in flat(data).items()
        if not key.startswith("about.") and "\n" not in str(value)
    ]
    tables = [
        f"`{key}`: {known.get(key, '')}\n\n{value.strip()}\n"
        for key, value in data.items()
        if isinstance(value, str) and "\n" in value
    ]
    head = [f"## {title.rstrip('.')}", "", about, "", "```bash", data["about"]["command"], "```", "", f"{machine}.", ""]
    return "\n".join([*head, "| | | |", "|---|--:|---|", *rows, "", *tables])


def meanings(docstring: str) -> dict[str, str]:
    """key -> meaning."""
    found: dict[str, str] = {}
    last = ""
    for line in docstring.splitlines():
        if match := _KEY.match(line):
            last, found[match[1]] = match[1], match[2]
        elif last and (match := _MORE.match(line)):
            found[last] += f" {match[1]}"
        else:
            last = ""
    return found


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def number(value: Any) -> str:
    """Three digits are what a measurement has."""
    if value is None:
        return "not measured"
    if isinstance(value, list):
        return ", ".join(number(each) for each in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
