"""Put a run's table, verdict and heatmap into README.md: python scripts/update_readme.py runs/quickstart."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.report.compare import verdict
from mixprec.report.tables import to_markdown, variant_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "quickstart_importance.png"
BEGIN, END = "<!-- quickstart: begin -->\n", "<!-- quickstart: end -->\n"
MOST_BYTES = 300_000


def with_block(text: str, block: str) -> str:
    """``text`` with ``block`` between the two markers.

    Raises UserError where they are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise UserError(f"README.md: expected {BEGIN.strip()} and then {END.strip()}, once each")
    return f"{before}{begin}\n{block}\n{end}{after}"


def results(run: Path) -> str:
    """A run's table of variants, and what it says folded behind it, as Markdown."""
    summary = artifacts.read_json(run / "summary.json")
    sentences = "".join(f"- {sentence}\n" for sentence in verdict(summary))
    said = f"<details><summary>What the report says of them</summary>\n\n{sentences}\n</details>\n"
    return f"{to_markdown(variant_table(summary, brief=True))}\n{said}"


def main(run: Path) -> None:
    """Rewrite README.md's block and copy the picture.

    Raises UserError where a file is missing or the picture is too large for a repository.
    """
    picture = run / "importance.png"
    if not picture.is_file():
        raise UserError(f"{picture}: no such file; make it with: mixprec report {run}")
    if picture.stat().st_size > MOST_BYTES:
        raise UserError(f"{picture}: {picture.stat().st_size} bytes, more than {MOST_BYTES}; draw it smaller")
    artifacts.write_text(README, with_block(artifacts.read_text(README), results(run)))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, PICTURE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} RUN")
    try:
        main(Path(sys.argv[1]))
    except UserError as problem:
        sys.exit(f"error: {problem}")
