"""Verbs from spans to importance: attribute, shift, rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixprec.cli.base import Device, Dtype, ModelId, Revision, alone, app, epilog, out
from mixprec.core import processes
from mixprec.core.errors import UserError


@app.command(
    epilog=epilog(
        "mixprec attribute spans.jsonl --out importance",
        "mixprec attribute spans.jsonl --preset released --out importance --model ./my-model",
        "accelerate launch --multi_gpu -m mixprec attribute spans.jsonl --out importance --device cuda",
    )
)
@alone
def attribute(
    spans_file: Annotated[Path, typer.Argument(metavar="SPANS", help="From 'mixprec annotate'.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the importance.")],
    model: ModelId = "smollm2-135m-instruct",
    preset: Annotated[str, typer.Option(help="Formulas: paper or released.")] = "paper",
    compare: Annotated[list[str] | None, typer.Option(help="Another preset, in the same pass.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Cut longer traces here.")] = None,
    resamples: Annotated[
        int | None, typer.Option(min=0, help="Bootstrap resamples for intervals; default 1000, 0: none.")
    ] = None,
    beyond_linear: Annotated[
        bool, typer.Option("--beyond-linear", help="Embeddings, norms and logits too, in importance_beyond.json.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read weights block by block, for a model larger than memory.")
    ] = False,
    sweep_gb: Annotated[
        float | None, typer.Option(help="With --stream: memory for the traces of one sweep; default 4.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Compute the importance of every linear module for the four behaviours."""
    from mixprec.api.look import attribute as function
    from mixprec.core import progress
    from mixprec.models.model import Model

    if processes.one_only():
        progress.console.print(
            "accelerate launch --cpu starts one process; for several on CPUs give --multi_gpu instead"
        )
    result = function(
        Model(model, revision=revision, dtype=dtype, device=device),
        spans_file,
        out=to,
        preset=preset,
        compare=compare or (),
        max_tokens=max_tokens,
        resamples=resamples,
        beyond_linear=beyond_linear,
        stream=stream,
        sweep_gb=sweep_gb,
    )
    processes.leave()
    if not processes.is_main():
        return
    result.heatmap().save(to / "importance")
    out.print(result)
    out.print(f"{to / 'importance.json'}, importance.png, importance.svg", soft_wrap=True)


@app.command(
    epilog=epilog(
        "mixprec shift original/importance.json awq/importance.json --out shift",
        "mixprec shift distilled/importance.json base/importance.json --kind net --out distillation",
    )
)
@alone
def shift(
    first: Annotated[Path, typer.Argument(help="importance.json of the model that reasons better: the original.")],
    second: Annotated[Path, typer.Argument(help="importance.json of its compressed copy, or of its base model.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of shift.json, .html, .png and .svg.")],
    kind: Annotated[str, typer.Option(help="What to draw: decreases, increases or net.")] = "decreases",
) -> None:
    """Show which modules lost relative importance from one model to another."""
    from mixprec.importance import artifact
    from mixprec.importance import shift as shifts
    from mixprec.report.rankings import agreement_table, movers_table
    from mixprec.report.shift import write_shift
    from mixprec.report.terminal import rich_table

    part = next((each for each in shifts.KINDS if each == kind), None)
    if part is None:
        raise UserError(f"--kind: {kind!r} is none of {', '.join(shifts.KINDS)}")
    made = shifts.shift(artifact.load(first), artifact.load(second), (str(first), str(second)))
    written = write_shift(made, part, to)
    title = "Modules that gained most" if kind == "increases" else "Modules that lost most"
    out.print(rich_table(movers_table(made, part), title))
    out.print()
    out.print(rich_table(agreement_table(made), "How alike the two rank their modules"))
    for behaviour, reason in made["skipped"].items():
        out.print(f"left out: {behaviour}, {reason}")
    presets = [made[side]["preset"] for side in ("first", "second")]
    if presets[0] != presets[1]:
        out.print(f"the presets differ, {presets[0]} and {presets[1]}: part of the shift comes from the formulas")
    out.print(", ".join(str(path) for path in written), soft_wrap=True)


@app.command(
    epilog=epilog(
        "mixprec rank runs/quickstart/importance/importance.json",
        "mixprec rank importance.json last_up last_gate 1_up",
        "mixprec rank importance.json last_*",
        "mixprec rank importance.json *_up --awq variants/awq_w4/quality.json",
    )
)
def rank(
    importance: Annotated[Path, typer.Argument(help="importance.json")],
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[LABEL]...", help="32_up, last_mlp, *_gate; default: the top ten.")
    ] = None,
    awq: Annotated[Path | None, typer.Option(help="quality.json of a variant made by awq: its scales beside.")] = None,
) -> None:
    """Rank modules by their importance over all behaviours: overall, in their layer, among their kind."""
    from mixprec.importance import artifact
    from mixprec.importance import shift as shifts
    from mixprec.report.rankings import places_table
    from mixprec.report.terminal import rich_table

    found = shifts.find_places(artifact.load(importance), labels or ())
    scales = None if awq is None else artifact.awq_scales(awq)
    out.print(rich_table(places_table(found, scales), "Ranks by importance summed over behaviours"))
