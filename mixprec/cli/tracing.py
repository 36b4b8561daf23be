"""Verbs that make traces: trace, make-traces, import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mixprec.cli.base import Data, Device, Dtype, Revision, app, epilog, out, pairs, template_arguments
from mixprec.core.errors import UserError


@app.command(
    epilog=epilog(
        "mixprec trace prompts.jsonl --out traces.jsonl --max-new-tokens 512",
        "mixprec trace chats.jsonl --model Qwen/Qwen3-0.6B --chat-template --out qwen.jsonl",
        "mixprec trace benchmark:folio --files data/benchmarks --engine vllm --model ./model --out folio.jsonl",
        "mixprec trace q.jsonl --key prompt=question --model r1 --url http://localhost:8000/v1 --out r1.jsonl",
    )
)
def trace(
    prompts: Annotated[
        str, typer.Argument(help="Rows with prompt, messages or conversations (JSON lines), or benchmark:NAME.")
    ],
    to: Annotated[Path, typer.Option("--out", help="Where the traces go.")],
    model: Annotated[
        str, typer.Option(help="Bundled name, hub id, folder or GGUF file; with --url the server's name for it.")
    ] = "smollm2-135m-instruct",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32_768,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: int = 0,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Use the model's own template.")] = False,
    template_argument: Annotated[
        list[str] | None, typer.Option(help="Of the template: enable_thinking=false; several times.")
    ] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm; not with --url.")] = "transformers",
    batch: Annotated[
        int, typer.Option(min=1, help="transformers: prompts at once; above 1 traces come in the order they end.")
    ] = 1,
    url: Annotated[str | None, typer.Option(help="A server with OpenAI's protocol, http://host:port/v1.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --url: model whose chat template is filled in here, not by the server.")
    ] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for an answer of the server.")] = 3600,
    retries: Annotated[int, typer.Option(min=0, help="Times that a failed request is sent again.")] = 6,
    key: Annotated[
        list[str] | None, typer.Option(help="Which key of a row holds what: prompt=question; several times.")
    ] = None,
    files: Annotated[Path | None, typer.Option(help="benchmark:NAME: folder with folio.jsonl …; default: hub.")] = None,
    first: Annotated[int | None, typer.Option(min=1, help="Only so many prompts.")] = None,
    data: Data = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Let a model reason about prompts; writes traces.

    Every trace is kept as soon as it is there; the same command continues where a killed run was. Traces of another
    model, prompt text or other settings never share a file.
    """
    from mixprec.api.look import traces
    from mixprec.evaluate.engines.openai import Server
    from mixprec.models.model import Model

    asked: Model | Server
    if url:
        secret = os.environ.get(key_variable)
        asked = Server(url, model, secret, concurrency=concurrency, timeout=timeout, retries=retries)
    else:
        asked = Model(model, revision=revision, dtype=dtype, device=device)
    if tokenizer and not url:
        raise UserError("--tokenizer is for --url; a model brings its own")
    found = traces(
        asked,
        prompts,
        to,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat_template=chat_template,
        template=template_arguments(template_argument or ()),
        engine=engine,
        batch=batch,
        tokenizer=tokenizer,
        keys=pairs("--key", key or (), "prompt=question"),
        files=files,
        data=data,
        first=first,
    )
    empty = f"; {found.empty} left out: the model wrote nothing" if found.empty else ""
    others = f"; {found.others} of them of no prompt in {prompts}" if found.others else ""
    out.print(f"{to}: {found.count} traces{others}{empty}", soft_wrap=True)
    if url and chat_template and not tokenizer:
        out.print(
            "the server filled in its chat template: prompts here are the messages' texts, not what the model saw; "
            "--tokenizer MODEL fills it in here",
            soft_wrap=True,
        )


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
    "import",
    epilog=epilog(
        "mixprec import project-1.json --out spans.jsonl",
        "mixprec import project-1.json --traces traces.jsonl --by 3 --out spans.jsonl",
        "mixprec import logs/2026-01-15_aime.eval --model Qwen/Qwen3-0.6B --out traces.jsonl",
    ),
)
def import_(
    file: Annotated[Path, typer.Argument(help="Label Studio's export (JSON, JSON-MIN), or inspect_ai's log.")],
    to: Annotated[Path, typer.Option("--out", help="Where the spans go, or traces where there are no labels.")],
    traces: Annotated[
        Path | None,
        typer.Option(help="Label Studio: the traces that were labelled, where tasks don't hold them whole."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Label Studio: number or address of the annotator whose annotations count.")
    ] = None,
    text_key: Annotated[
        str | None, typer.Option(help="Label Studio: key of the data that was labelled; default: output or text.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="inspect_ai: write prompts in this model's chat template, as it saw them.")
    ] = None,
) -> None:
    """Read traces and annotations that other programs wrote."""
    from mixprec.api.importing import import_traces

    found = import_traces(file, to, traces=traces, by=by, text_key=text_key, model=model)
    out.print(str(to), soft_wrap=True)
    out.print(found)
