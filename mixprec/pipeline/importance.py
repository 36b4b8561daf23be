"""The stage that computes importance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.importance import RULES, artifact, streaming
from mixprec.importance.attribute import attribute
from mixprec.models.load import LoadedModel
from mixprec.models.model import Model
from mixprec.pipeline.context import Context, computing
from mixprec.recipe import ImportanceSpec
from mixprec.traces.spans import AnnotatedTrace


def importance(run: Context) -> tuple[dict[str, Any] | None, str | None]:
    """importance.json of the recipe's traces, and the stage's fingerprint; None where the recipe has no such part."""
    spec, traces_spec = run.recipe.importance, run.recipe.traces
    if spec is None or traces_spec is None:
        return None, None
    traces, stamp = run.annotate(traces_spec, run.out / "spans.jsonl", "annotate")
    return attributed(run, spec, run.model, traces, stamp, run.out / "importance", "attribute")


def attributed(
    run: Context,
    spec: ImportanceSpec,
    model: Model,
    traces: list[AnnotatedTrace],
    stamp: str,
    folder: Path,
    name: str,
) -> tuple[dict[str, Any], str]:
    """importance.json of ``model`` on ``traces``, whose fingerprint is ``stamp``, and that of the stage ``name``."""
    compared = [folder / f"importance_{preset}.json" for preset in spec.presets[1:]]
    beyond = [folder / "importance_beyond.json"] if spec.beyond_linear else []
    made = run.stages.do(
        name,
        RULES,
        [computing(model), stamp, spec.model_dump(exclude={"stream", "sweep_gb"})],  # how, not what
        [folder / "importance.json", folder / "steering.safetensors", *compared, *beyond],
        lambda: attribute(
            opened(model, spec),
            traces,
            folder,
            presets=spec.presets,
            identity=artifacts.fingerprint(computing(model)),
            max_tokens=spec.max_tokens,
            resamples=spec.resamples,
            beyond_linear=spec.beyond_linear,
        ),
    )
    return artifact.load(folder / "importance.json"), made


def opened(model: Model, spec: ImportanceSpec) -> LoadedModel:
    """The model as its spans are attributed: whole, or read block by block."""
    return streaming.open_model(model, sweep_gb=spec.sweep_gb) if spec.stream else model.load()
