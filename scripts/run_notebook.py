"""Execute a notebook's cells in this process and keep their outputs in the file.

python scripts/run_notebook.py docs/quickstart.ipynb [--check]

``--check`` writes nothing. It needs no Jupyter: a cell's last expression is shown as a notebook would show it.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def show(value: Any) -> dict[str, Any]:
    """MIME type -> what a notebook keeps of a value."""
    found: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        found["text/html"] = value._repr_html_().splitlines(keepends=True)
    if hasattr(value, "_repr_png_"):
        found["image/png"] = base64.b64encode(value._repr_png_()).decode()
    return found


def execute(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Run one cell; returns its outputs."""
    body = ast.parse(source, f"cell {number}").body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
        value = None if last is None else eval(compile(last, f"cell {number}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        result = {"data": show(value), "execution_count": number, "metadata": {}}
        outputs.append(result | {"output_type": "execute_result"})
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    path = arguments.notebook.resolve()
    book = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # what the cells write goes with it
        cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells, 1):
            cell["outputs"] = execute("".join(cell["source"]), names, number)
            cell["execution_count"] = number
        os.chdir(path.parent)
    if not arguments.check:
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
