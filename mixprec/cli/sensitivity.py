"""Verbs that predict and measure damage: sensitivity, ablate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixprec.cli.base import (
    Data,
    Device,
    Dtype,
    ModelId,
    Overrides,
    Revision,
    alone,
    app,
    calibrated,
    epilog,
    out,
    typed_options,
)
from mixprec.core import processes
from mixprec.core.errors import UserError

if TYPE_CHECKING:
    from mixprec.results.importance import Importance
    from mixprec.results.scores import Scores


@app.command(
    epilog=epilog(
        "mixprec sensitivity --traces bundled:attribution --format w3g64 --format w4g64 --out sensitivity",
        "mixprec sensitivity --scorer measured --text wiki.valid.raw --format w3g64 --out sensitivity",
        "mixprec sensitivity --traces bundled:attribution --behaviour backtracking --format w3g64 --out sensitivity",
        "mixprec sensitivity my_recipe.yaml --out sensitivity",
        "accelerate launch --multi_gpu -m mixprec sensitivity my_recipe.yaml --out sensitivity",
    )
)
@alone
def sensitivity(
    context: typer.Context,
    to: Annotated[Path, typer.Option("--out", help="Folder of the tables.")],
    recipe: Annotated[str | None, typer.Argument(help="A recipe with sensitivity; else options say all.")] = None,
    override: Overrides = None,
    data: Data = None,
    scorer: Annotated[str, typer.Option(help="fisher, first_order, measured, weight_error, …")] = "fisher",
    format: Annotated[list[str] | None, typer.Option(help="A candidate; give several.")] = None,
    method: Annotated[str, typer.Option(help="Whose errors are scored.")] = "gptq",
    at: Annotated[str, typer.Option(help="Gradients at the original, path or compressed model.")] = "original",
    base: Annotated[str | None, typer.Option(help="With --at: the format that all modules are in there.")] = None,
    behaviour: Annotated[list[str] | None, typer.Option(help="A table for its spans in --traces too.")] = None,
    importance: Annotated[Path | None, typer.Option(help="importance.json, for the scorer importance.")] = None,
    fine_tuned_from: Annotated[
        str | None, typer.Option(help="The model's base, for the scorer updates; --method awq scales by it too.")
    ] = None,
    outside: Annotated[list[str] | None, typer.Option(help="embedding or head: scored too, by measurement.")] = None,
    model: ModelId = "smollm2-135m-instruct",
    text: Annotated[str | None, typer.Option(help="Calibration: a text file.")] = None,
    traces: Annotated[str | None, typer.Option(help="Calibration: traces, or bundled:attribution.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration: samples in all.")] = 16,
    tokens: Annotated[int, typer.Option(min=2, help="Calibration: tokens of each sample.")] = 512,
    scored: Annotated[int, typer.Option(min=1, help="Samples, or traces, that damage is predicted on.")] = 8,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Predict, or measure, what each module costs in each format; writes a table per scorer and target."""
    from mixprec.api.annotating import annotate
    from mixprec.api.spend import sensitivity as function
    from mixprec.api.updates import updates
    from mixprec.compress.options import SolveOptions
    from mixprec.models.model import Model
    from mixprec.report.sensitivity import write_sensitivity
    from mixprec.results.importance import Importance

    typed = typed_options(context)
    if recipe is not None and (ignored := sorted(typed - {"recipe", "to", "override", "data", "importance"})):
        raise UserError(
            f"mixprec sensitivity {recipe}: the recipe says {', '.join(ignored)}, so the option would be ignored; "
            "change the recipe, or its keys with --set"
        )
    if recipe is None and override:
        raise UserError("mixprec sensitivity: --set changes a recipe's keys; give a RECIPE, or the options instead")
    known = Importance.load(importance) if importance else None
    if recipe is not None:
        scores = _from_recipe(recipe, override or [], to, data, known)
    else:
        if not (text or traces) or not format:
            raise UserError("mixprec sensitivity: give a RECIPE, or --format and one of --text and --traces")
        opened = Model(model, revision=revision, dtype=dtype, device=processes.join(device))
        calibration = calibrated(opened, text=text, traces=traces, samples=samples, tokens=tokens)
        spans = annotate(traces) if traces and behaviour else None
        options = None
        if fine_tuned_from is not None:
            with processes.main_first():
                made = updates(fine_tuned_from, opened, to / "updates.safetensors")
            options = SolveOptions(updates=made)
        scores = function(
            opened,
            calibration,
            format,
            method=method,
            scorer=scorer,
            at=at,
            base=base,
            samples=scored,
            behaviours=behaviour or (),
            traces=spans,
            importance=known,
            options=options,
            outside=outside or (),
            out=to,
        )
    processes.leave()
    if not processes.is_main():
        return
    written = write_sensitivity(scores.by_target, to)
    out.print(scores)
    out.print(", ".join(str(path) for path in written), soft_wrap=True)


def _from_recipe(name: str, overrides: list[str], to: Path, data: Path | None, known: Importance | None) -> Scores:
    """What the recipe's own part asks for."""
    from mixprec import recipe as recipes
    from mixprec.core import locks
    from mixprec.pipeline import Run, damage
    from mixprec.results.scores import Scores
    from mixprec.sensitivity import run

    path = recipes.find(name)
    chosen = recipes.load(path, overrides)
    if chosen.sensitivity is None:
        raise UserError(f"{path}: sensitivity is missing; add sensitivity: {{formats: [w3g64, w4g64]}}")
    processes.join(chosen.model.device)
    with locks.folder(to):
        subject = damage.subject(Run(chosen, "", "sensitivity", to, data), to, dict(known.data) if known else None)
        return Scores(run.score(subject, chosen.sensitivity))


@app.command(
    epilog=epilog(
        "mixprec ablate ablation_smollm2 --out runs/ablation",
        "mixprec ablate my_recipe.yaml --set ablation.stride=4 --out runs/ablation",
        "accelerate launch --multi_gpu -m mixprec ablate my_recipe.yaml --out runs/ablation",
    )
)
@alone
def ablate(
    recipe: Annotated[str, typer.Argument(help="A recipe with ablation and evaluate, or its name in 'mixprec ls'.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of ablation.json and its page.")],
    importance: Annotated[Path | None, typer.Option(help="importance.json, to judge it too.")] = None,
    override: Overrides = None,
    data: Data = None,
) -> None:
    """Change sets of modules one after the other, measure what that does, and judge scorers by it."""
    from mixprec import recipe as recipes
    from mixprec.importance import artifact
    from mixprec.pipeline import Run, damage
    from mixprec.report.terminal import print_ablation

    path = recipes.find(recipe)
    chosen = recipes.load(path, override or [])
    if chosen.ablation is None:
        raise UserError(f'{path}: ablation is missing; add ablation: {{each: "*_*", formats: [w3g64]}}')
    device = processes.join(chosen.model.device)
    chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"device": device})})
    known = artifact.load(importance) if importance else None
    result = damage.ablate(Run(chosen, "", path.stem, to, data), to, known)
    processes.leave()
    if not processes.is_main():
        return
    print_ablation(result, out)
    out.print(f"{to / 'ablation.json'}, ablation.html", soft_wrap=True)
