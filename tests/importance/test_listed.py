"""docs/architectures.md is what the tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_list_of_architectures_is_that_of_the_tests() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "update_architectures.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
