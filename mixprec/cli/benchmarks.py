"""Verbs on benchmarks: bench, score, tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mixprec.api.arguments import checked
from mixprec.cli.base import Data, Device, Dtype, Revision, alone, app, epilog, out, pairs, template_arguments
from mixprec.core.errors import UserError

ThinkTags = Annotated[
    list[str] | None, typer.Option(help="Further tags around the thinking, '<plan>,</plan>'; several times.")
]
Label = Annotated[list[str] | None, typer.Option(help="For tables: compression='4-bit AWQ'; several times.")]
Baseline = Annotated[Path | None, typer.Option(help="benchmarks.json to compare with, question by question.")]
Files = Annotated[Path | None, typer.Option(help="Folder with aime_2024.jsonl …; default: the hub.")]


@app.command(
    epilog=epilog(
        "mixprec bench deepseek-ai/DeepSeek-R1-Distill-Llama-8B --dtype bfloat16 --device cuda --out results/original",
        "mixprec bench ./checkpoint --benchmark folio --seed 0 --baseline results/original/benchmarks.json --out r/awq",
        "mixprec bench r1-8b --url http://localhost:8000/v1 --concurrency 32 --out results/served",
        "mixprec bench smollm2-135m-instruct --files data/benchmarks --limit 2 --max-new-tokens 64 --out results/try",
        "mixprec bench Qwen/Qwen3-0.6B --prompts chat --thinking-budget 4096 --engine vllm --out results/qwen_4k",
        "mixprec bench smollm2-135m-instruct --files data/benchmarks --protocol likelihood --out results/likely",
    )
)
@alone
def bench(
    model: Annotated[str, typer.Argument(help="Folder, hub id or bundled name; with --url the server's name for it.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of generations and benchmarks.json.")],
    benchmark: Annotated[list[str] | None, typer.Option(help="One benchmark; several times. Default: four.")] = None,
    files: Files = None,
    embedder: Annotated[str | None, typer.Option(help="musique_rag: embedding model, a hub id or a folder.")] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm; not with --url.")] = "transformers",
    batch: Annotated[int, typer.Option(min=1, help="transformers: outputs at once.")] = 16,
    url: Annotated[str | None, typer.Option(help="A server with OpenAI's protocol, http://host:port/v1.")] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for an answer of the server.")] = 3600,
    retries: Annotated[int, typer.Option(min=0, help="Times that a failed request is sent again.")] = 6,
    protocol: Annotated[
        str, typer.Option(help="generate: outputs are scored; likelihood: that of each answer, nothing is generated.")
    ] = "generate",
    stub: Annotated[str | None, typer.Option(help="likelihood: the text in front of the answer.")] = None,
    after: Annotated[
        Path | None, typer.Option(help="likelihood: folder of bench's outputs, to take over what they think.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="paper: the paper's text; chat: the model's template.")] = "paper",
    template_argument: Annotated[
        list[str] | None, typer.Option(help="With --prompts chat: enable_thinking=false; several times.")
    ] = None,
    thinking_budget: Annotated[
        int | None, typer.Option(min=1, help="Longest thinking, in tokens; then it is ended. Not with --url.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="One pass with this seed; several times. Default: 0 1 2.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32_768,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.6,
    top_p: float = 0.95,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each benchmark.")] = None,
    think_tags: ThinkTags = None,
    label: Label = None,
    baseline: Baseline = None,
    data: Data = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Run reasoning benchmarks on a model: scores with intervals, and what went wrong in the outputs.

    Every output is kept as soon as it is there; the same command continues where a killed run was.
    """
    from mixprec.api.judge import BENCHMARKS
    from mixprec.api.judge import bench as function
    from mixprec.evaluate.engines.openai import Server
    from mixprec.models.model import Model

    more = {"embedder": embedder} if embedder else {}
    asked: Model | Server = Model(model, revision=revision, dtype=dtype, device=device)
    if url:
        key = os.environ.get(key_variable)
        asked = Server(url, model, key, concurrency=concurrency, timeout=timeout, retries=retries)
    result = function(
        asked,
        to,
        benchmarks=[{"name": name, **more} for name in benchmark or BENCHMARKS],
        files=files,
        data=data,
        labels=pairs("--label", label or (), "compression='4-bit AWQ'"),
        baseline=baseline,
        engine={"kind": engine, "batch": batch},
        protocol=protocol,
        stub=stub,
        after=None if after is None else str(after),
        prompts=prompts,
        template=template_arguments(template_argument or ()),
        thinking_budget=thinking_budget,
        seeds=tuple(seed or (0, 1, 2)),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        limit=limit,
        think_tags=tuple(think_tags or ()),
    )
    out.print(str(to / ("likelihood.json" if protocol == "likelihood" else "benchmarks.json")), soft_wrap=True)
    out.print(result)


@app.command(
    epilog=epilog(
        "mixprec score outputs.jsonl --benchmark folio --files data/benchmarks --out results/mine",
        "mixprec score seed0.jsonl seed1.jsonl seed2.jsonl --benchmark aime_2024 --out results/mine",
        "mixprec score samples_aime24.jsonl --benchmark aime_2024 --baseline results/original/benchmarks.json",
        "mixprec score answers.jsonl --benchmark musique --key output=said.last --key id=question.number",
        "mixprec score results/original   (what mixprec bench generated, scored again)",
    )
)
@alone
def score(
    outputs: Annotated[
        list[Path],
        typer.Argument(
            help="JSONL, JSON, parquet or a folder. Several are further passes, or parts of one pass.", metavar="FILE…"
        ),
    ],
    benchmark: Annotated[
        list[str] | None, typer.Option(help="One benchmark; several times. Default: what rows or file names say.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Folder that benchmarks.json goes to.")] = None,
    files: Files = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Which key of a plain file holds what: output=said.last; several times.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="paper: the prompt opened the thinking; chat: it didn't. Default: what rows say.")
    ] = None,
    first_index: Annotated[int, typer.Option(help="Number of the first question in the file's index.")] = 0,
    repeats: Annotated[bool, typer.Option(help="Take rows that repeat a question as further passes.")] = False,
    partial: Annotated[bool, typer.Option(help="Leave out rows that match no question.")] = False,
    in_order: Annotated[
        bool, typer.Option(help="Take rows without id, index and prompt in the questions' order.")
    ] = False,
    tokenizer: Annotated[str | None, typer.Option(help="Count tokens with it: folder, hub id or bundled name.")] = None,
    think_tags: ThinkTags = None,
    label: Label = None,
    baseline: Baseline = None,
    data: Data = None,
) -> None:
    """Score outputs that exist, from any tool: bench's statistics and diagnosis, without a model or a server.

    It reads mixprec's, lm-eval's and lighteval's outputs, OpenAI's batch files, numbered texts and plain JSON lines.

    A plain line has an output; an id, an index or a prompt; and, if known, how the output ended.
    """
    from mixprec.api.judge import comparable
    from mixprec.evaluate import existing
    from mixprec.evaluate import outputs as reading
    from mixprec.evaluate.outputs import Options, benchmarks_in
    from mixprec.evaluate.spec import ProtocolSpec
    from mixprec.results.benchmarks import BenchResult

    checked(ProtocolSpec, "score", think_tags=tuple(think_tags or ()), prompts=prompts or "paper")
    base = comparable(baseline) if baseline else None
    keys = pairs("--key", key or (), "output=said.last")
    found = [file for path in outputs for file in reading.read(path, keys)]
    existing.check_different([file.path for file in found])
    names = list(dict.fromkeys(benchmark or benchmarks_in(found)))
    questions = {name: existing.questions_of(name, _source(name, files, data), data) for name in names}
    options = Options(first_index, repeats, partial, in_order)
    count = _counter(tokenizer) if tokenizer else None
    result = existing.score_files(found, questions, prompts, think_tags or (), options, count)
    labels = {"model": outputs[0].stem, **pairs("--label", label or (), "compression='4-bit AWQ'")}
    for sentence in existing.sentences(result["outputs"]):
        out.print(sentence, markup=False, highlight=False)
    scored = BenchResult({"labels": labels, **result}, base)
    if to:
        scored.save(to / "benchmarks.json")
    more = f" and {len(outputs) - 1} more" * (len(outputs) > 1)
    out.print(str(to / "benchmarks.json") if to else f"{outputs[0]}{more}", soft_wrap=True)
    out.print(scored)


def _source(name: str, files: Path | None, data: Path | None) -> str | None:
    """Where a benchmark's questions are: ``--files``, else the data folder, else the hub."""
    from mixprec.evaluate.benchmarks import find
    from mixprec.recipe import DATA_VARIABLE

    if files:
        return str(files / find(name).file)
    return f"data:benchmarks/{find(name).file}" if data or os.environ.get(DATA_VARIABLE) else None


def _counter(name: str) -> Callable[[str], int]:
    """What counts the tokens of a text."""
    import sys

    from mixprec.models.tokenizer import load_encoder

    try:
        encoder = load_encoder(name, None, sys.maxsize)
    except UserError as problem:
        raise UserError(f"--tokenizer: {str(problem).removeprefix('model.id: ')}") from None
    return lambda text: len(encoder.piece(text).ids)


@app.command(
    epilog=epilog(
        "mixprec tables runs/table4_llama_8b --table 4",
        "mixprec tables results/original results/awq_w3 --table 1 --format latex --out table.tex",
        "mixprec tables runs/table3_llama_8b --table 3 --format csv",
    )
)
def tables(
    results: Annotated[list[Path], typer.Argument(help="Run folders, folders of 'mixprec bench', or benchmarks.json.")],
    table: Annotated[int, typer.Option(help="Which of the paper's: 1, 2, 3, 4, 7, 8, 9, 10 or 11.")] = 1,
    format: Annotated[str, typer.Option(help="terminal, markdown, latex, html or csv.")] = "terminal",
    to: Annotated[Path | None, typer.Option("--out", help="Where the table goes; default: the terminal.")] = None,
) -> None:
    """Put results on benchmarks side by side in the layout of one of the paper's tables, with intervals and n."""
    import sys

    from mixprec.core import artifacts
    from mixprec.report import paper
    from mixprec.report.render import FORMATS
    from mixprec.report.shapes import read_benchmarks
    from mixprec.report.terminal import rich_table

    paths = [path for each in results for path in _result_files(each)]
    found = [read_benchmarks(path) for path in paths]
    _scored_alike(paths, found)
    made = paper.table(table, found)
    if format == "terminal" and to is None:
        out.print(rich_table(made, f"Table {table}: {paper.LAYOUTS[table].title}"))
        return
    if format not in FORMATS:
        raise UserError(f"--format: {format!r} is none of {', '.join(FORMATS)}")
    text = FORMATS[format](made)
    if to:
        artifacts.write_text(to, text)
        out.print(f"{to}: {len(made.rows)} rows")
    else:
        sys.stdout.write(text)


def _scored_alike(paths: list[Path], found: list[dict[str, Any]]) -> None:
    """Raises UserError where results were scored by other rules than those beside them."""
    rules = [int(each.get("scoring_rules") or 0) for each in found]
    old, new = rules.index(min(rules)), rules.index(max(rules))
    if rules[old] != rules[new]:
        raise UserError(
            f"{paths[old]}: scored by rules {rules[old]}, {paths[new]} by rules {rules[new]}; their scores can't stand "
            "in one table. Run the command that made the former again: outputs are kept and only scored again"
        )


def _result_files(where: Path) -> list[Path]:
    """The benchmarks.json of a file, a folder, or a run's variants in the recipe's order."""
    from mixprec.report.shapes import read_summary

    if where.is_file():
        return [where]
    if (where / "benchmarks.json").is_file():
        return [where / "benchmarks.json"]
    if (where / "summary.json").is_file():
        names = read_summary(where / "summary.json").get("variants") or {}
        paths = [where / "variants" / name / "benchmarks.json" for name in names]
        if any(path.is_file() for path in paths):
            return [path for path in paths if path.is_file()]
    raise UserError(f"{where}: no benchmarks.json here; make one with mixprec bench, or a recipe with benchmarks")
