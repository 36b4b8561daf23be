"""distill: a student learns from a teacher's traces."""

from __future__ import annotations

from pathlib import Path

from mixprec.api.checking import AnyModel, model_of
from mixprec.core.arguments import typed
from mixprec.core.progress import OnStep, telling
from mixprec.distill import run
from mixprec.distill.options import DistillOptions
from mixprec.results.distilled import Distilled


@typed()
def distill(
    student: AnyModel,
    traces: str | Path,
    out: str | Path,
    *,
    teacher: AnyModel | None = None,
    options: DistillOptions | None = None,
    base_model: str | None = None,
    progress: OnStep | None = None,
) -> Distilled:
    """Train ``student`` on a teacher's ``traces`` and write it as a checkpoint: on their text (TRL), or with a
    ``teacher`` of the same tokenizer on its predictions for them.

    Only what the teacher wrote counts. Traces that are held out decide what is kept. ``options``: how it is trained.
    ``base_model``: the student's id on the hub, for the card. A killed call continues.

    Raises UserError where the extra ``distill`` is not installed, for a student that is quantized or lacks the chat
    template that is asked for, a teacher of another tokenizer, traces that are too long, and where nothing is gained:
    then nothing is written.
    """
    with telling(progress):
        ready = run.prepare(
            model_of(student),
            str(traces),
            Path(out),
            options or DistillOptions(),
            teacher=None if teacher is None else model_of(teacher),
            base_model=base_model,
        )
        made = run.distill(ready)
    return Distilled(made.folder, made.told, made.speed)
