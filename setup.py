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
        self.mkpath(str(target))
        for recipe in sorted(Path("recipes").glob("*.yaml")):
            self.copy_file(str(recipe), str(target / recipe.name))


setup(cmdclass={"build_py": BuildWithRecipes})
