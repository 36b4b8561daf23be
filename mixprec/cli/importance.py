"""Verbs from traces to importance: trace, make-traces, annotate, attribute, shift, rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mixprec.cli.base import Device, Dtype, ModelId, Revision, SpanRule, alone, app, epilog, out
from mixprec.core import processes
from mixprec.core.errors import UserError


@app.command(
    epilog=epilog(
        "mixprec trace prompts.jsonl --out traces.jsonl --max-new-tokens 512",
        "mixprec trace prompts.jsonl --model Qwen/Qwen3-0.6B --chat-template --out qwen.jsonl",
    )
)
def trace(
    prompts: Annotated[Path, typer.Argument(help="JSON lines with id, prompt and, if you like, dataset.")],
    to: Annotated[Path, typer.Option("--out", help="Where the traces go.")],
    model: ModelId = "smollm2-135m-instruct",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32_768,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: int = 0,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Use the model's own template.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once; above 1 traces come in the order they end.")] = 1,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Let a model reason about prompts; writes traces.

    Every trace is kept as soon as it is there; the same command continues where a killed run was. Traces of another
    model, prompt text or other settings never share a file.
    """
    from mixprec.api.look import traces
    from mixprec.models.model import Model

    opened = Model(model, revision=revision, dtype=dtype, device=device)
    found = traces(
        opened,
        prompts,
        to,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat_template=chat_template,
        batch=batch,
    )
    empty = f"; {found.empty} left out: the model wrote nothing" if found.empty else ""
    others = f"; {found.others} of them of no prompt in {prompts}" if found.others else ""
    out.print(f"{to}: {found.count} traces{others}{empty}", soft_wrap=True)


def _show_prompt(wanted: bool) -> None:
    if wanted:
        from mixprec.traces.judge import prompts

        print(prompts.own().template)  # as it is: it may be redirected to a file
        raise typer.Exit


@app.command(
    "make-traces",
    epilog=epilog(
        "mixprec make-traces --out made.jsonl",
        "mixprec make-traces --count 500 --seed 1 --kind timetable --kind ordering --out made.jsonl",
    ),
)
def make_traces(
    to: Annotated[Path, typer.Option("--out", help="Where the traces go.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 110,
    seed: int = 0,
    kind: Annotated[list[str] | None, typer.Option(help="Only problems of this kind; may be repeated.")] = None,
) -> None:
    """Make annotated reasoning traces by a procedure, without a model.

    For tests and quick runs. Labels and answers are right by construction.
    """
    from mixprec.api.procedural import make_traces as function

    found = function(to, count=count, seed=seed, kinds=kind or ())
    out.print(f"{to}: {found.count} traces", soft_wrap=True)


@app.command(
    epilog=epilog(
        "mixprec annotate traces.jsonl --out spans.jsonl",
        "mixprec annotate traces.jsonl --preset aligned --out spans.jsonl",
        "mixprec annotate my_traces.jsonl --annotator classifier --out spans.jsonl",
        "mixprec annotate my_traces.jsonl --annotator classifier --train annotated.jsonl --out spans.jsonl",
        "mixprec annotate mine.jsonl --judge http://localhost:8000/v1 --judge-model gpt-oss-120b --out spans.jsonl",
    )
)
def annotate(
    traces: Annotated[str, typer.Argument(help="Trace file (JSON lines), or bundled:attribution.")],
    to: Annotated[Path, typer.Option("--out", help="Where the spans go.")],
    preset: SpanRule = "paper",
    annotator: Annotated[
        str, typer.Option(help="given: the file's annotations; classifier: by sentence, offline; cues: cue phrases.")
    ] = "given",
    train: Annotated[
        list[str] | None, typer.Option(help="With classifier: annotated traces that it learns from too.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="A language model annotates: a server with OpenAI's protocol, http://host:port/v1."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The server's name for the judge.")] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="A file to ask with instead of ours; {text} stands where the text goes.")
    ] = None,
    show_prompt: Annotated[
        bool,
        typer.Option(
            "--show-prompt", callback=_show_prompt, is_eager=True, help="Print our prompt for judges, and end."
        ),
    ] = False,
    answers: Annotated[
        Path | None, typer.Option(help="File that keeps the judge's answers; default: beside --out.")
    ] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
    piece: Annotated[int, typer.Option(min=200, help="Characters of a trace that are judged at once.")] = 4000,
    attempts: Annotated[int, typer.Option(min=1, help="Times that a piece is asked for, until it can be used.")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="The judge's; 0 is greedy.")] = 0.1,
    top_p: Annotated[float, typer.Option(help="The judge's share of the probability that is drawn from.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, its thinking included.")] = 8192,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for an answer of the server.")] = 1800,
    retries: Annotated[int, typer.Option(min=0, help="Times that a failed request is sent again.")] = 6,
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens of prompts.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens of answers.")] = None,
    first: Annotated[int | None, typer.Option(min=1, help="Only so many traces.")] = None,
) -> None:
    """Find each behaviour's spans in annotated traces, or let a language model annotate them.

    A judge's answers are kept as soon as they are there; the same command continues where a killed run was.
    """
    from mixprec.api.annotating import Judge
    from mixprec.api.annotating import annotate as function
    from mixprec.pipeline.annotating import answers_beside
    from mixprec.traces import annotators, spans, store

    asked = None
    if judge is None and (judge_model or judge_prompt or answers):
        raise UserError("--judge-model, --judge-prompt and --answers are about a judge; say where it is: --judge URL")
    if judge is not None:
        if judge_model is None:
            raise UserError("--judge: say which model to ask there: --judge-model NAME")
        asked = Judge(
            judge,
            judge_model,
            prompt=judge_prompt and str(judge_prompt),
            key_variable=key_variable,
            piece=piece,
            attempts=attempts,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            price_in=price_in,
            price_out=price_out,
        )
        answers = answers or answers_beside(to)
    found = function(
        traces, preset=preset, annotator=annotator, train=train or (), judge=asked, answers=answers, first=first
    )
    found.save(to)
    out.print(str(to), soft_wrap=True)
    out.print(found)
    if preset == "aligned" and annotator == "given" and asked is None and not annotators.has_spans(store.locate(traces)):
        outcomes = spans.compare_rules(store.load(traces))
        table = Table("behaviour", *spans.OUTCOMES, title="aligned against the released rule")
        for behaviour, counts in outcomes.items():
            table.add_row(behaviour, *(str(counts[outcome]) for outcome in spans.OUTCOMES))
        out.print(table)


@app.command(
    epilog=epilog(
        "mixprec agreement judge.jsonl reviewed.jsonl",
        "mixprec agreement judge.jsonl classifier.jsonl --model ./my-model --max-tokens 4096 --out agreement",
    )
)
@alone
def agreement(
    first: Annotated[Path, typer.Argument(help="Spans, or annotated traces.")],
    second: Annotated[Path, typer.Argument(help="Another annotation of the same traces.")],
    model: Annotated[
        str | None, typer.Option(help="Compute importance from both: bundled name, hub id, folder or GGUF file.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Folder of agreement.json; with --model of both.")] = None,
    preset: Annotated[str, typer.Option(help="With --model: formulas, paper or released.")] = "paper",
    max_tokens: Annotated[int | None, typer.Option(min=2, help="With --model: cut longer traces here.")] = None,
    resamples: Annotated[
        int | None, typer.Option(min=0, help="Resamples of traces for intervals; default 1000, 0: none.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Compare two annotations of the same traces: agreement per behaviour, and what it does to importance."""
    from mixprec.api.agreement import agreement as function
    from mixprec.models.model import Model

    opened = None if model is None else Model(model, revision=revision, dtype=dtype, device=device)
    found = function(
        first, second, model=opened, out=to, preset=preset, max_tokens=max_tokens, resamples=resamples
    )
    if to:
        out.print(str(to / "agreement.json"), soft_wrap=True)
    out.print(found)


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
