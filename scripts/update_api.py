"""Write the tables of docs/api.md from the code. python scripts/update_api.py [--check]"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import generated

import mixprec

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def _first(value: Any) -> str:
    """The first sentence of a docstring, for a cell."""
    text = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return text.replace("``", "`").replace("|", "\\|")


def _arguments(function: Any) -> str:
    """Names and defaults; what stands behind ``*`` is given by name."""
    parts, named = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            parts, named = [*parts, "*"], True
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f"={_default(parameter.default)}"
        parts.append(f"{star}{parameter.name}{default}")
    return ", ".join(parts)


def _default(value: Any) -> str:
    return "…" if isinstance(value, tuple) and value else repr(value)


def tables() -> str:
    """The functions with their arguments, and the types."""
    public = {name: getattr(mixprec, name) for name in mixprec._PUBLIC}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    lines = ["| function | |", "|---|---|"]
    lines += [f"| `{name}({_arguments(value)})` | {_first(value)} |" for name, value in functions.items()]
    lines += ["", "| type | |", "|---|---|"]
    lines += [f"| `{name}` | {_first(value)} |" for name, value in public.items() if name not in functions]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/api.md as the code has it."""
    return generated.filled(PAGE, "api", tables())


if __name__ == "__main__":
    generated.main(PAGE, page)
