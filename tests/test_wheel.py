"""What an installed wheel has: all of the package, and the recipes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def call(*arguments: object, **options: object) -> str:
    found = subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,  # type: ignore[call-overload]
    )
    assert found.returncode == 0, found.stdout
    return str(found.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in; built from a copy, as building leaves files beside the sources."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("mixprec", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = ("-m", "pip", "--no-input", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    call(*pip, "install", "--no-deps", "--no-index", "--target", folder / "installed", wheel)
    return folder / "installed"


def test_all_files_of_the_package_and_all_recipes_are_there(installed: Path) -> None:
    wanted = {path.relative_to(ROOT) for path in (ROOT / "mixprec").rglob("*") if path.is_file()}
    wanted = {path for path in wanted if "__pycache__" not in path.parts}
    wanted |= {Path("mixprec", path.relative_to(ROOT)) for path in [*RECIPES, ROOT / "recipes" / "recipe.schema.json"]}
    there = {path.relative_to(installed) for path in (installed / "mixprec").rglob("*") if path.is_file()}
    assert {path for path in there if "__pycache__" not in path.parts} == wanted
    assert [path.name for path in installed.glob("*.dist-info/licenses/*")] == ["LICENSE"]


def test_recipes_are_listed_copied_and_validated_by_name(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}

    def mix(*arguments: str) -> str:
        return call("-m", "mixprec", *arguments, cwd=tmp_path, env=environment)

    assert call("-c", "import mixprec; print(mixprec.__file__)", cwd=tmp_path, env=environment).startswith(
        str(installed)
    )
    listed = mix("ls")
    assert [path.stem for path in RECIPES if path.stem not in listed] == []
    mix("cp", "quickstart", "mine.yaml")
    mine = (tmp_path / "mine.yaml").read_text(encoding="utf-8").splitlines()
    right = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8").splitlines()
    assert (mine[0], mine[2:]) == (right[0], right[2:])
    assert Path(mine[1].partition("=")[2]).is_file()
    # One whose model is known without weights.
    assert "table3_llama_8b.yaml: valid" in mix("validate", "table3_llama_8b")
