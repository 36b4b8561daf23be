"""docs/api.md against the code; the notebook, executed in a fresh process on the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import update_api

import mixprec

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_the_page_lists_the_public_names_with_their_arguments() -> None:
    assert update_api.PAGE.read_text(encoding="utf-8") == update_api.page(), "run python scripts/update_api.py"
    for name in mixprec._PUBLIC:
        assert f"| `{name}`" in update_api.page() or f"| `{name}(" in update_api.page()


def test_every_public_name_says_what_it_is() -> None:
    for name in mixprec._PUBLIC:
        text = getattr(mixprec, name).__doc__
        assert text and text.strip(), name


def test_the_notebook_has_20_lines_and_a_picture() -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(line.strip()) for cell in cells for line in cell["source"]) <= 20
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 150_000


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "run_notebook.py", NOTEBOOK, "--check"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
