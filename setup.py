"""The package's settings are in pyproject.toml; this puts the recipes, which lie beside the package, into a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """A wheel has ``recipes/`` as ``mixprec/recipes/``; an editable installation reads them where they lie."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "mixprec", "recipes")
        for recipe in sorted([*Path("recipes").rglob("*.yaml"), *Path("recipes").glob("*.json")]):
            to = target / recipe.relative_to("recipes")
            self.mkpath(str(to.parent))
            self.copy_file(str(recipe), str(to))


setup(cmdclass={"build_py": BuildWithRecipes})
