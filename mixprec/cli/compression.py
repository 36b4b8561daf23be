"""Verbs on checkpoints: compress, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mixprec.cli.base import Device, Dtype, SpanRule, app, checked, epilog, out
from mixprec.errors import UserError


@app.command(
    epilog=epilog(
        "mixprec compress plan.json --out checkpoint",
        "mixprec compress plan.json --model ./my-copy --out checkpoint",
    )
)
def compress(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json, from 'mixprec plan'.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint.")],
    model: Annotated[str | None, typer.Option(help="Where the model lies; default: the plan's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
) -> None:
    """Compress a model as a plan says; writes a checkpoint that transformers loads."""
    from mixprec import artifacts, models, modules
    from mixprec.compress import stream
    from mixprec.numerics.formats import Keep
    from mixprec.plan.schema import load_plan
    from mixprec.progress import bar

    plan_data = artifacts.read_json(plan_file)
    if not isinstance(plan_data, dict) or not isinstance(plan_data.get("model"), str):
        raise UserError(f"{plan_file}: key 'model' is missing; is this a plan.json, from 'mixprec plan'?")
    where = model or plan_data["model"]
    made = load_plan(plan_file, modules.inventory(models.load_config(where, revision)))
    total = sum(not isinstance(format, Keep) for format in made.formats.values())
    with bar("compress", len(made.modules), "modules") as advance:
        reports = stream.compress(where, made, to, revision=revision, on_module=lambda *_: advance(1))
    worst = sorted(reports.items(), key=lambda item: -item[1].relative_error)[:5]
    table = Table("module", "format", "relative error", title=f"{to}: {total} of {len(reports)} modules")
    for address, report in worst:
        table.add_row(address, str(report.format), f"{report.relative_error:.4f}")
    out.print(table)


@app.command(
    epilog=epilog(
        "mixprec evaluate checkpoint --reference smollm2-135m-instruct --traces bundled:held_out",
        "mixprec evaluate checkpoint --reference ./original --text wiki.test.raw --out result.json",
    )
)
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="The model to evaluate.")],
    reference: Annotated[str, typer.Option(help="The original model.")] = "smollm2-135m-instruct",
    traces: Annotated[str | None, typer.Option(help="Annotated traces, or bundled:held_out.")] = None,
    preset: SpanRule = "paper",
    text: Annotated[str | None, typer.Option(help="Text file, or bundled:held_out.")] = None,
    text_tokens: Annotated[int, typer.Option(min=2)] = 512,
    to: Annotated[Path | None, typer.Option("--out", help="result.json; default: the terminal only.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Compare a compressed model with its original: perplexity, KL, agreement, per behaviour too."""
    from mixprec import artifacts, models, pipeline
    from mixprec.evaluate import fidelity, metrics, passages
    from mixprec.recipe import EvaluateSpec, TracesSpec

    spec = checked(
        EvaluateSpec,
        "evaluate",
        traces={"source": traces, "preset": preset} if traces else None,
        text=text,
        text_tokens=text_tokens,
    )
    original = models.load(reference, dtype=dtype, device=device)
    annotated = pipeline.annotate_traces(TracesSpec(source=traces, preset=spec.traces.preset), traces) if traces else []
    on_traces, skipped = passages.from_traces(annotated, original.tokenizer, original.context)
    length = min(text_tokens, original.context)
    on_text = passages.from_text(text, original.tokenizer, length) if text else []
    everything = [*on_traces, *on_text]
    states = list(fidelity.hidden_states(original, everything, "original"))
    head = models.head(original.model)
    del original
    loaded = models.load(checkpoint, dtype=dtype, device=device)
    hidden = fidelity.hidden_states(loaded, everything, "evaluate")
    found = fidelity.compare(everything, hidden, models.head(loaded.model), states, head)
    result = metrics.evaluate_all(on_traces, on_text, found)
    if to:
        artifacts.write_json(to, result)
    table = Table("tokens of", "n", "perplexity", "KL mean", "KL median", "KL p99", "top-1", title=checkpoint)
    rows = {"traces": result["traces"], "text": result["text"], **(result["behaviours"] or {})}
    for name, row in rows.items():
        if row:
            values = (row[key] for key in ("perplexity", "kl_mean", "kl_median", "kl_p99", "top1_agreement"))
            table.add_row(name, str(row["tokens"]), *(f"{value:.4g}" for value in values))
    out.print(table)
    if skipped:
        out.print(f"skipped: {dict(sorted(skipped.items()))}")
