"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

python scripts/lowest.py [--torch VERSION]
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirements: list[str]) -> dict[str, str]:
    """Package -> the lower end of its range, of what has one."""
    found = (re.match(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)", each) for each in requirements)
    return {each["name"]: each["version"] for each in found if each}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="VERSION", help="another version of torch")
    found = lowest(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"])
    if (torch := parser.parse_args().torch) is not None:
        found["torch"] = torch
    for name, version in found.items():
        print(f"{name}=={version}")
