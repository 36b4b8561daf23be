"""Stages of what models write themselves: a student learns, models reason, and importance shifts between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from mixprec import recipe
from mixprec.checkpoint.integrity import card_of
from mixprec.core import artifacts, publish
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.distill import RULES as DISTILL_RULES
from mixprec.distill import run as distilling
from mixprec.importance import shift as shifts
from mixprec.models.model import Model
from mixprec.pipeline import tracing
from mixprec.pipeline.annotating import NoSpans
from mixprec.pipeline.context import Context, computing
from mixprec.pipeline.importance import attributed
from mixprec.recipe import GenerateSpec, ShiftSpec
from mixprec.recipe.own import ShiftKind
from mixprec.report.shift import write_shift
from mixprec.traces import RULES, store
from mixprec.traces.prompts import Prompt, by_id


def prepared(run: Context) -> distilling.Prepared | None:
    """What the recipe's model will learn from. Raises UserError as distill does, before any work."""
    spec = run.recipe.distill
    if spec is None:
        return None
    asked = spec.teacher
    teacher = None if asked is None else Model(asked.id, revision=asked.revision, device=run.model.device)
    traces, hub = run.locate(spec.traces), run.recipe.model.base_model
    return distilling.prepare(run.base, traces, run.out / "distilled", spec.options, teacher=teacher, base_model=hub)


def learn(run: Context) -> str | None:
    """The recipe's ``distill``, once: from here on what the student became is the run's model. Gives the stage's
    fingerprint."""
    ready, out = prepared(run), run.out / "distilled"
    if ready is None:
        return None
    inputs = [ready.stamp, run.base.device]
    stamp = run.stages.do("distill", DISTILL_RULES, inputs, [out], lambda: distilling.distill(ready))
    run.model = run.at(out)
    return stamp


def prompts_of(spec: GenerateSpec, data: Path | None) -> list[Prompt]:
    """What is reasoned about. Raises UserError as tracing.prompts_of does."""
    source = spec.prompts
    if source.startswith("bundled:"):
        source = str(store.locate(source))
    files = None if spec.files is None else Path(spec.files).expanduser()
    return tracing.prompts_of(
        recipe.locate(source, data), keys=spec.keys, chat=spec.chat_template, files=files, data=data, first=spec.first
    )


def generate(run: Context, model: Model, target: Path, name: str) -> str:
    """What ``model`` writes about the recipe's prompts, in ``target``; gives the fingerprint of the stage ``name``. A
    killed one goes on behind its last trace.

    Raises UserError as tracing does, and where the model writes nothing at all.
    """
    spec = run.recipe.generate
    assert spec is not None  # the recipe is checked for it
    prompts = prompts_of(spec, run.data)
    # Who generates, and how many at once, changes rounding, and so what is drawn.
    inputs = [computing(model), list(map(dict, prompts)), spec.model_dump(mode="json", exclude={"prompts", "files"})]
    part = target.with_name(f".{target.stem}.{artifacts.fingerprint(inputs)[:16]}.jsonl")

    def make() -> None:
        for other in target.parent.glob(f".{target.stem}.*.jsonl"):
            if other != part:  # begun with other settings
                publish.remove(other)
        asked = tracing.local(model, spec.engine, spec.chat_template, spec.template)
        found = tracing.trace(
            asked,
            prompts,
            part,
            sampling=spec.sampling,
            seed=spec.seed,
            chat=spec.chat_template,
            template=spec.template,
        )
        if found.empty:
            console.print(f"{name}: {found.empty} of {len(prompts)} left out: the model wrote nothing", soft_wrap=True)
        if not found.count:
            raise UserError(f"{name}: {model.id} wrote nothing about any of {len(prompts)} prompts; set chat_template")
        # In the prompts' order, however they ended.
        rows = {store.full_id(row["id"], row["dataset"]): row for row in artifacts.read_jsonl(part)}
        artifacts.write_jsonl(target, [rows[each] for each in by_id(prompts) if each in rows])
        publish.remove(part)

    return run.stages.do(name, RULES, inputs, [target], make)


def begun(run: Context) -> dict[str, Any]:
    """What a summary says of how the run began: what its model learned, what it wrote, and who found spans in that."""
    chosen, told = run.recipe, dict[str, Any]()
    if chosen.distill is not None:
        learned = card_of(run.out / "distilled")["distillation"]
        counts, course = learned["counts"], learned["course"]
        told["distilled"] = {
            "traces": counts["training_traces"],
            "tokens": counts["training_tokens"],
            "validation_traces": counts["validation_traces"],
            "steps": course["kept_step"],
            "before": course["before"],
            "after": course["after"],
        }
    if chosen.generate is not None:
        written = len(artifacts.read_jsonl(run.own_traces))
        told["generated"] = {
            "traces": written,
            "prompts": chosen.generate.prompts,
            "max_new_tokens": chosen.generate.max_new_tokens,
        }
    if chosen.importance is not None and chosen.traces is not None:
        judge = chosen.traces.judge
        told["annotated"] = {
            "own": chosen.traces.source == recipe.OWN,
            "by": chosen.traces.annotator if judge is None else "judge",
            "judge": None if judge is None else judge.model,
        }
    return told


def shift(
    run: Context, importance: dict[str, Any] | None, name: str, model: Model, folder: Path
) -> dict[str, Any] | None:
    """The recipe's ``shift`` for one ``model`` beside the original: how far its importance is from the original's, by
    behaviour, or why that isn't known; None where the recipe has none. Writes its pages into ``folder``/shift."""
    spec = run.recipe.shift
    if spec is None or importance is None:
        return None
    told = _shifted(run, spec, importance, name, model, folder)
    model.release()
    return told


def _shifted(
    run: Context, spec: ShiftSpec, importance: dict[str, Any], name: str, model: Model, folder: Path
) -> dict[str, Any]:
    asked, traces_spec = run.recipe.importance, run.recipe.traces
    assert asked is not None  # the recipe is checked for both
    assert traces_spec is not None
    traces, key = folder / "traces.jsonl", f"shift/{name}"
    for kind in get_args(ShiftKind):
        publish.remove(_page(folder, spec, kind))
    try:
        if spec.traces == "own":
            generate(run, model, traces, f"generate/{name}")
            found, stamp = run.annotate(traces_spec, folder / "spans.jsonl", f"annotate/{name}", traces)
        else:
            found, stamp = run.annotate(traces_spec, run.out / "spans.jsonl", "annotate")
    except NoSpans as problem:
        console.print(f"{key}: {problem}", soft_wrap=True)
        return {"unknown": str(problem)}
    other, _ = attributed(run, asked, model, found, stamp, folder / "importance", f"attribute/{name}")
    made = shifts.shift(importance, other, ("original", name))
    for kind in spec.kind:
        write_shift(made, kind, _page(folder, spec, kind))
    return {
        "behaviours": {
            behaviour: {"moved": entry["moved"], "spearman": entry["spearman"]}
            for behaviour, entry in made["behaviours"].items()
        },
        "skipped": made["skipped"],
        "page": (_page(folder, spec, spec.kind[0]) / "shift.html").relative_to(run.out).as_posix(),
        "traces": len(found),
        "own": spec.traces == "own",
    }


def _page(folder: Path, spec: ShiftSpec, kind: ShiftKind) -> Path:
    """Where a part of a shift is drawn: ``shift`` for the first that the recipe names."""
    return folder / ("shift" if kind == spec.kind[0] else f"shift_{kind}")
