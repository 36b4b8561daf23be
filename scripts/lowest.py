"""Print the lowest versions that pyproject.toml allows, as constraints for pip: ``python scripts/lowest.py``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirements: list[str]) -> dict[str, str]:
    """Package -> the lower end of its range, of what has one."""
    found = (re.match(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)", each) for each in requirements)
    return {each["name"]: each["version"] for each in found if each}


if __name__ == "__main__":
    for name, version in lowest(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]).items():
        print(f"{name}=={version}")
