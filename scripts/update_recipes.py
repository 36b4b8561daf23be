"""Write the tables of recipes/README.md from the recipes. python scripts/update_recipes.py [--check]"""

from __future__ import annotations

from pathlib import Path

import generated

from mixprec import recipe

PAGE = Path(__file__).parents[1] / "recipes" / "README.md"


def tables() -> str:
    """Recipes that run on a laptop, and those of the paper's rows."""
    known = {name: recipe.load(path) for name, path in recipe.catalogue().items()}
    lines = ["| recipe | what it does | needs | takes |", "|---|---|---|---|"]
    lines += [
        f"| [{name}]({name}.yaml) | {one.title} | {one.about.needs} | {one.about.takes} |"
        for name, one in known.items()
        if "/" not in name
    ]
    lines += ["", "| the paper's | recipe | what it does | needs | takes |", "|---|---|---|---|---|"]
    rows = {name: one for name, one in known.items() if "/" in name}
    lines += [
        f"| {one.about.paper} | [{Path(name).name}]({name}.yaml) | {one.title.partition(': ')[2] or one.title} "
        f"| {one.about.needs} | {one.about.takes} |"
        for name, one in rows.items()
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """recipes/README.md as the recipes have it."""
    return generated.filled(PAGE, "recipes", tables())


if __name__ == "__main__":
    generated.main(PAGE, page)
