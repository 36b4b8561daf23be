"""Verbs about annotations: annotate, agreement, review."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mixprec.cli.base import Device, Dtype, Revision, SpanRule, alone, app, epilog, out
from mixprec.core.errors import UserError


def _show_prompt(wanted: bool) -> None:
    if wanted:
        from mixprec.traces.judge import prompts

        print(prompts.own().template)  # as it is: it may be redirected to a file
        raise typer.Exit


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
    if (
        preset == "aligned"
        and annotator == "given"
        and asked is None
        and not annotators.has_spans(store.locate(traces))
    ):
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
    found = function(first, second, model=opened, out=to, preset=preset, max_tokens=max_tokens, resamples=resamples)
    if to:
        out.print(str(to / "agreement.json"), soft_wrap=True)
    out.print(found)


@app.command(
    epilog=epilog(
        "mixprec review spans.jsonl --out review.html",
        "mixprec review spans.jsonl --checkpoint ./awq-w3 --reference ./my-model --out review.html",
    )
)
def review(
    spans_file: Annotated[Path, typer.Argument(metavar="SPANS", help="Spans, or annotated traces.")],
    to: Annotated[Path, typer.Option("--out", help="The page; it opens without a network.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="A compressed model: tokens are underlined by KL to --reference.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The original of --checkpoint.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="KL only so far into a trace.")] = None,
    first: Annotated[int | None, typer.Option(min=1, help="Only so many traces.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Write a page to look through annotations and correct them; what it saves are spans."""
    from mixprec.api.review import review as function
    from mixprec.models.model import Model

    if (checkpoint is None) != (reference is None):
        raise UserError("--checkpoint and --reference go together: KL is between both; give the other one")
    models = [None if name is None else Model(name, dtype=dtype, device=device) for name in (checkpoint, reference)]
    written = function(spans_file, to, checkpoint=models[0], reference=models[1], max_tokens=max_tokens, first=first)
    out.print(f"{written}: open it in a browser; what it saves is read as {spans_file} is", soft_wrap=True)
