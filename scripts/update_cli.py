"""Write docs/cli.md, every verb with its options, from the command line. python scripts/update_cli.py [--check]"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import generated
import typer.main

from mixprec import cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _name(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    if not names[0].startswith("-"):
        names = [(parameter.metavar or names[0]).upper()]
    return ", ".join(f"`{name}`" for name in names)


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value == [] or callable(value) or parameter.opts == ["--help"]:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _verb(name: str, verb: Any) -> list[str]:
    """A section: what it does, its options, examples."""
    lines = [f"## {name}", "", re.sub(r"\[/?\w+\]", "", verb.help or "").strip(), ""]
    shown = [each for each in verb.params if not each.hidden and each.opts != ["--help"]]
    if shown:
        lines += ["| | | default |", "|---|---|---|"]
        lines += [f"| {_name(each)} | {_cell(each.help or '')} | {_default(each)} |" for each in shown]
        lines.append("")
    examples = (verb.epilog or "").replace("\\[", "[").split("\n\n")[1:]
    return [*lines, "```bash", *examples, "```", ""] if examples else lines


def page() -> str:
    """docs/cli.md as the command line has it."""
    verbs = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    lines = [line for name, verb in verbs.items() for line in _verb(name, verb)]
    return generated.filled(PAGE, "cli", "\n".join(lines))


if __name__ == "__main__":
    generated.main(PAGE, page)
