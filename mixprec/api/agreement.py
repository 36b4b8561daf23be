"""agreement: two annotations of the same traces, and what the difference does to importance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixprec.api.arguments import checked, given
from mixprec.api.checking import AnyModel, model_of
from mixprec.api.folders import folder_for
from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.core.progress import OnStep, telling
from mixprec.recipe import ImportanceSpec
from mixprec.results.agreement import Agreement
from mixprec.results.spans import Spans
from mixprec.traces import agreement as stage
from mixprec.traces import annotators
from mixprec.traces.store import BEHAVIOURS


@typed()
def agreement(
    first: Spans | str | Path,
    second: Spans | str | Path,
    *,
    model: AnyModel | None = None,
    out: str | Path | None = None,
    preset: str = "paper",
    max_tokens: int | None = None,
    resamples: int | None = None,
    progress: OnStep | None = None,
) -> Agreement:
    """How far two annotations of the same traces agree, in characters and in spans, with intervals over traces.

    ``first``, ``second``: spans, or files of spans or annotated traces; traces that only one of them has are counted
    and left out. ``model``: importance is computed from both, and it is told how alike they rank the modules;
    ``preset``, ``max_tokens`` as for ``attribute``. ``resamples``: for intervals, default 1,000; 0: none. ``out``: a
    folder for agreement.json and what a killed call goes on from.

    Raises UserError where the two have no trace in common, or other texts.
    """
    options = given(max_tokens=max_tokens, resamples=resamples)
    spec = checked(ImportanceSpec, "agreement", preset=preset, **options)
    names = [_name(each, place) for each, place in ((first, "first"), (second, "second"))]
    pairs = stage.pair(*(_spans(each) for each in (first, second)))
    data: dict[str, Any] = {"names": dict(zip(("first", "second"), names, strict=True)), "scored": list(BEHAVIOURS)}
    with telling(progress), folder_for(out) as folder:
        data |= stage.compare(pairs, spec.resamples)
        if model is not None:
            data["importance"] = _importance(model_of(model), pairs, folder, spec)
        found = Agreement(data)
        if out is not None:
            found.save(folder / "agreement.json")
        return found


def _name(given: Spans | str | Path, place: str) -> str:
    return place if isinstance(given, Spans) else str(given)


def _spans(given: Spans | str | Path) -> list[Any]:
    return list(given) if isinstance(given, Spans) else annotators.annotated(str(given), "paper")


def _importance(model: Any, pairs: stage.Pairs, folder: Path, spec: ImportanceSpec) -> dict[str, Any]:
    # They bring torch, which agreement in characters doesn't need.
    from mixprec.importance import agreement as rankings
    from mixprec.importance.attribute import attribute

    loaded, identity = model.load(), artifacts.fingerprint(model.identity, model.dtype, model.device)
    folders = [folder / "first", folder / "second"]
    for side, where in zip((pairs.first, pairs.second), folders, strict=True):
        try:
            attribute(
                loaded, side, where, presets=[spec.preset], identity=identity, max_tokens=spec.max_tokens, resamples=0
            )
        except UserError as problem:
            raise UserError(f"{where.name}: {problem}") from None
    return rankings.compare(loaded, folders[0], folders[1], len(pairs.first), spec.preset, spec.resamples)
