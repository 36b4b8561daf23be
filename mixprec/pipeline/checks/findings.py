"""What is found wrong with a recipe: gathered, so that one mistake hides no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mixprec.core.errors import UserError, listed, named


@dataclass
class Findings:
    """``problems``: of the recipe and its files. ``lacking``: what this machine needs before it can run the recipe.
    ``unchecked``: what could not be looked at without the network. Each is a sentence with key and remedy."""

    problems: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, where: str = "") -> Iterator[None]:
        """Inside, a UserError becomes one of the problems, with ``where`` (a key or a variant) in front."""
        try:
            yield
        except UserError as problem:
            self.add(str(problem), where)

    @contextmanager
    def lacks(self) -> Iterator[None]:
        """Inside, a UserError is something that this machine lacks."""
        try:
            yield
        except UserError as problem:
            self.lacking.append(str(problem))

    def add(self, problem: str, where: str = "") -> None:
        """One more problem, unless it is known."""
        told = named(where, problem)
        if told not in self.problems:
            self.problems.append(told)

    def require(self, where: str, *, here: bool = False) -> None:
        """Raises UserError with all problems of the recipe ``where``; ``here``: with what this machine lacks too."""
        problems = [*self.problems, *(self.lacking if here else ())]
        if problems:
            raise UserError(listed(where, problems) if where else "\n".join(problems))
