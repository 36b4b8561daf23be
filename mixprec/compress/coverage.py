"""How many calibration tokens came to each expert: too few make a Hessian of chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mixprec.compress.module import ModuleReport
from mixprec.compress.options import ExpertOptions
from mixprec.core.progress import console
from mixprec.models.labels import place_of

#: What to do about experts that few tokens reach.
REMEDY = (
    "more calibration samples, of the text that the model is for; or compress.experts: {tokens: all}, which sends all "
    "tokens through all experts; pooled does so for starved ones alone"
)


class Layer(NamedTuple):
    """A layer of experts: its number, and the tokens that the router sent to each."""

    layer: int
    tokens: tuple[int, ...]

    def starved(self, least: int) -> int:
        """How many experts got fewer than ``least``."""
        return sum(count < least for count in self.tokens)


def coverage(reports: Mapping[str, ModuleReport]) -> list[Layer]:
    """Layers of experts whose inputs were looked at, in order."""
    found: dict[int, dict[int, int]] = {}
    for address, report in reports.items():
        place = place_of(address)
        if place.layer is not None and place.expert is not None and report.tokens is not None:
            found.setdefault(place.layer, {})[place.expert] = report.tokens
    return [Layer(layer, tuple(counts[number] for number in sorted(counts))) for layer, counts in sorted(found.items())]


def warn(reports: Mapping[str, ModuleReport], options: ExpertOptions) -> None:
    """Say how many experts were starved, if any were and their own tokens are what they were to be solved for."""
    layers = coverage(reports)
    starved = sum(layer.starved(options.least) for layer in layers)
    if starved and options.tokens != "all":
        count = sum(len(layer.tokens) for layer in layers)
        unseen = sum(layer.starved(1) for layer in layers)
        done = "all of their layer's" if options.tokens == "pooled" else "these few"
        console.print(
            f"experts: {starved} of {count} got fewer than {options.least} calibration tokens, {unseen} of them none; "
            f"they were solved for {done}. Better: {REMEDY}",
            soft_wrap=True,
        )
