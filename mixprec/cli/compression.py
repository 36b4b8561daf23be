"""Verbs on checkpoints: compress, evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mixprec.cli.base import BaseModel, Device, Dtype, SpanRule, app, calibrated, checked, epilog, out, read_plan

if TYPE_CHECKING:
    from mixprec.compress.module import ModuleReport


@app.command(
    epilog=epilog(
        "mixprec compress plan.json --out checkpoint",
        "mixprec compress plan.json --format compressed-tensors --out checkpoint",
        "mixprec compress plan.json --text wiki.valid.raw --samples 32 --out checkpoint",
        "mixprec compress plan.json --traces bundled:attribution --samples 16 --model ./my-copy --out checkpoint",
    )
)
def compress(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json, from 'mixprec plan'.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint.")],
    model: Annotated[str | None, typer.Option(help="Where the model lies; default: the plan's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    text: Annotated[str | None, typer.Option(help="Calibration: a text file.")] = None,
    traces: Annotated[str | None, typer.Option(help="Calibration: traces, or bundled:attribution.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration: samples in all.")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="Calibration: tokens of each sample.")] = 512,
    seed: Annotated[int, typer.Option(help="Calibration: draws the samples.")] = 0,
    damping: Annotated[float | None, typer.Option(help="gptq, gptaq, sparsegpt: of the Hessian; default 0.03.")] = None,
    act_order: Annotated[bool, typer.Option(help="gptq, gptaq: columns of large inputs first.")] = True,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    format: Annotated[str, typer.Option(help="dense, compressed-tensors, gptq or gguf.")] = "dense",
    base_model: BaseModel = None,
    repository: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload it afterwards.")
    ] = None,
) -> None:
    """Compress a model as a plan says; writes a checkpoint that runtimes load.

    A killed run goes on with the first block that is missing.
    """
    from mixprec.checkpoint import hub
    from mixprec.checkpoint.formats import checkpoint_format
    from mixprec.compress import stream
    from mixprec.compress.options import SolveOptions
    from mixprec.core.float64 import check_float64
    from mixprec.core.progress import bar
    from mixprec.plan.methods import solving

    check_float64(device, "compress")
    form = checkpoint_format(format)
    made, _, _ = read_plan(plan_file, model, revision)
    where = model or made.model
    given = {"damping": damping} if damping is not None else {}
    options = checked(SolveOptions, "compress", act_order=act_order, **given)
    calibration = None
    if text or traces:
        calibration = calibrated(
            "compress",
            where,
            revision,
            text=text,
            traces=traces,
            samples=samples,
            tokens=tokens,
            seed=seed,
            solves=bool(solving(made.methods)),
        )
    with bar("compress", len(made.modules), "modules") as advance:
        reports = stream.compress(
            where,
            made,
            to,
            calibration=calibration,
            options=options,
            revision=revision,
            dtype=dtype,
            device=device,
            format=form,
            on_module=lambda *_: advance(1),
            base_model=base_model,
        )
    if repository:
        out.print(hub.push(to, repository), soft_wrap=True)
    out.print(_quality(reports, f"{to}: {len(made.changed)} of {len(reports)} modules"))


def _quality(reports: Mapping[str, ModuleReport], title: str) -> Table:
    """The modules with the largest errors of their outputs, or of their weights where no method looked at inputs."""
    table = Table("module", "format", "method", "weight error", "output error", "retries", title=title)
    worst = sorted(reports.items(), key=lambda item: -(item[1].output_error or item[1].relative_error))[:5]
    for address, report in worst:
        error = "-" if report.output_error is None else f"{report.output_error:.4f}"
        method = f"{report.method}, then {report.fallback}" if report.fallback else report.method
        table.add_row(address, report.format, method, f"{report.relative_error:.4f}", error, str(report.retries))
    return table


@app.command(
    epilog=epilog(
        "mixprec evaluate checkpoint --reference smollm2-135m-instruct --traces bundled:held_out",
        "mixprec evaluate checkpoint --reference ./original --text wiki.test.raw --out result.json",
        "mixprec evaluate ./original --text wiki.test.raw --save-reference original.safetensors",
        "mixprec evaluate checkpoint --reference original.safetensors --text wiki.test.raw",
    )
)
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="The model to evaluate.")],
    reference: Annotated[
        str, typer.Option(help="The original model, or its predictions (a .safetensors of --save-reference).")
    ] = "smollm2-135m-instruct",
    traces: Annotated[str | None, typer.Option(help="Annotated traces, or bundled:held_out.")] = None,
    preset: SpanRule = "paper",
    text: Annotated[str | None, typer.Option(help="Text file, or bundled:held_out.")] = None,
    text_tokens: Annotated[int, typer.Option(min=2)] = 512,
    to: Annotated[Path | None, typer.Option("--out", help="result.json; default: the terminal only.")] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Compare nothing: write this model's predictions, to compare others with.")
    ] = None,
    kept: Annotated[int, typer.Option(min=1, help="With --save-reference: tokens kept at each position.")] = 64,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Compare a compressed model with its original: perplexity, KL, agreement, per behaviour too."""
    from mixprec import pipeline
    from mixprec.core import artifacts
    from mixprec.core.float64 import check_float64
    from mixprec.evaluate import fidelity, metrics, passages
    from mixprec.evaluate import reference as predictions
    from mixprec.models import locate
    from mixprec.models.head import Head
    from mixprec.models.load import check_model, load_model
    from mixprec.recipe import EvaluateSpec, TracesSpec

    check_float64(device, "evaluate")
    spec = checked(
        EvaluateSpec,
        "evaluate",
        traces={"source": traces, "preset": preset} if traces else None,
        text=text,
        text_tokens=text_tokens,
    )
    saved = Path(reference) if reference.endswith(".safetensors") else None
    check_model(checkpoint)  # the original comes first, and takes long
    # Predictions of the original hold its tokens, which the model's own tokenizer must give again.
    first = load_model(checkpoint if saved or save_reference else reference, dtype=dtype, device=device)
    annotated = pipeline.annotate_traces(TracesSpec(source=traces, preset=spec.traces.preset), traces) if traces else []
    on_traces, skipped = passages.from_traces(annotated, first.encoder, first.context)
    length = min(text_tokens, first.context)
    on_text = passages.from_text(text, first.encoder, length) if text else []
    everything = [*on_traces, *on_text]
    head = Head.of(first.model)
    if save_reference:
        states = fidelity.hidden_states(first, everything, "predictions")
        predictions.save(save_reference, everything, states, head, locate.identity(checkpoint), kept)
        size = save_reference.stat().st_size / 1e6
        out.print(f"{save_reference}: {len(everything)} passages, {kept} tokens kept at each position, {size:.1f} MB")
        return
    if saved:
        known = predictions.load(saved, everything)
        hidden = fidelity.hidden_states(first, everything, "evaluate")
        found = predictions.compare(everything, hidden, head, known)
        notes = first.notes
    else:
        original = list(fidelity.hidden_states(first, everything, "original"))
        head = head.apart()
        del first
        loaded = load_model(checkpoint, dtype=dtype, device=device)
        hidden = fidelity.hidden_states(loaded, everything, "evaluate")
        found = fidelity.compare(everything, hidden, Head.of(loaded.model), original, head)
        notes = loaded.notes
    result = metrics.evaluate_all(on_traces, on_text, found, notes)
    if to:
        artifacts.write_json(to, result)
    out.print(_fidelity(result, checkpoint))
    if skipped:
        out.print(f"skipped: {dict(sorted(skipped.items()))}")


def _fidelity(result: Mapping[str, Any], title: str) -> Table:
    """How close the model is to its original, by what the tokens belong to."""
    table = Table("tokens of", "n", "perplexity", "KL mean", "KL median", "KL p99", "top-1", title=title)
    rows = {"traces": result["traces"], "text": result["text"], **(result["behaviours"] or {})}
    for name, row in rows.items():
        if row:
            values = (row[key] for key in ("perplexity", "kl_mean", "kl_median", "kl_p99", "top1_agreement"))
            table.add_row(name, str(row["tokens"]), *(f"{value:.4g}" for value in values))
    return table
