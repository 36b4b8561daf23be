"""Which versions pyproject.toml allows, which ones figures were measured with, and which ones are the lowest."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mixprec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {each.name: each for each in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {each.name: each for extra in PROJECT["optional-dependencies"].values() for each in map(Requirement, extra)}


def pins(text: str) -> dict[str, str]:
    """Package -> version of the lines ``name==version``."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


MEASURED = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NEEDED)
def test_every_package_has_a_range_with_a_lower_end(name: str) -> None:
    operators = [each.operator for each in NEEDED[name].specifier]
    assert operators.count(">=") == 1
    assert set(operators) <= {">=", "<"}


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_measured_is_in_the_range(name: str) -> None:
    assert (NEEDED.get(name) or EXTRAS[name]).specifier.contains(MEASURED[name])


def test_the_lowest_versions_are_the_lower_ends_of_the_ranges() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "lowest.py")]
    found = pins(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert found == {
        name: each.version for name, needed in NEEDED.items() for each in needed.specifier if each.operator == ">="
    }


def test_the_version_is_the_changelogs_newest() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert released[0] == mixprec.__version__
    assert "version" in PROJECT["dynamic"]  # it stands in core/version.py alone
