"""The command line: verbs only. Each one calls a stage; ``mixprec run`` walks them all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixprec import __version__, processes
from mixprec.errors import UserError

if TYPE_CHECKING:
    from mixprec.recipe import Recipe

# Heavy imports (torch, transformers) stay inside the verbs, so that --help and mistakes answer at once.

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find out which weights a language model reasons with, and spend the bits there.",
    epilog="Start with: [bold]mixprec run quickstart[/bold]   then open runs/quickstart/report.html",
    add_completion=False,
)
out = Console()

RecipeName = Annotated[str, typer.Argument(help="Recipe file, or its name in 'mixprec ls'.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set model.dtype=bfloat16")]
Data = Annotated[Path | None, typer.Option(help="Folder of data: sources (or MIXPREC_DATA).")]
Model = Annotated[str, typer.Option(help="Bundled name, hub id, folder or GGUF file.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto for several GPUs.")]
Dtype = Annotated[str, typer.Option(help="Type to compute in: float32, bfloat16, float16.")]
SpanRule = Annotated[str, typer.Option(help="How annotations become spans: paper, released or aligned.")]


#: Verbs that share their work under ``accelerate launch``.
_PARALLEL = ("attribute",)


def _epilog(*examples: str) -> str:
    return "\n\n".join(["[bold]Examples[/bold]", *(escape(example) for example in examples)])


@app.command(
    epilog=_epilog(
        "mixprec run quickstart",
        "mixprec run recipes/r1_traces_smollm2.yaml --data ../shared/data",
        "mixprec run quickstart --set model.dtype=bfloat16 --out /tmp/bf16",
    )
)
def run(
    recipe: RecipeName,
    to: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/<recipe>.")] = None,
    data: Data = None,
    change: Overrides = None,
) -> None:
    """Run a recipe from end to end. What is already there is kept; a killed run continues."""
    import yaml

    from mixprec import pipeline
    from mixprec import recipe as recipes
    from mixprec.report.terminal import print_summary

    path = recipes.find(recipe)
    chosen = recipes.load(path, change or ())
    text = path.read_text(encoding="utf-8")
    if change:
        text = yaml.safe_dump(chosen.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    folder = to or Path("runs") / path.stem
    summary = pipeline.Run(chosen, text, path.stem, folder, data).run()
    print_summary(summary, out)
    out.print(f"[bold]{folder / 'report.html'}[/bold]", soft_wrap=True)


@app.command(
    epilog=_epilog(
        "mixprec trace prompts.jsonl --out traces.jsonl --max-new-tokens 512",
        "mixprec trace prompts.jsonl --model Qwen/Qwen3-0.6B --chat-template --out traces.jsonl",
    )
)
def trace(
    prompts: Annotated[Path, typer.Argument(help="JSON lines with id, prompt and, if you like, dataset.")],
    to: Annotated[Path, typer.Option("--out", help="Where the traces go.")],
    model: Model = "smollm2-135m-instruct",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32_768,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: int = 0,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Use the model's own template.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Let a model reason about prompts; writes traces."""
    from collections import Counter

    from mixprec import models
    from mixprec.progress import bar
    from mixprec.traces.generate import full_id, generate, load_prompts
    from mixprec.traces.store import Recorder

    recorder = Recorder(to)
    rows = load_prompts(prompts)
    left = [row for row in rows if full_id(row) not in recorder.done]
    skipped: Counter[str] = Counter()
    with bar("trace", len(rows), "prompts") as advance:
        advance(len(rows) - len(left))
        for made in generate(
            models.load(model, dtype=dtype, device=device),
            left,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            chat_template=chat_template,
            skipped=skipped,
        ):
            recorder.write(made)
            advance(1)
    empty = f"; {skipped['empty']} left out: the model wrote nothing" if skipped["empty"] else ""
    out.print(f"{to}: {len(recorder.done)} traces{empty}")


@app.command(
    epilog=_epilog(
        "mixprec annotate traces.jsonl --out spans.jsonl",
        "mixprec annotate traces.jsonl --preset aligned --out spans.jsonl",
        "mixprec annotate my_traces.jsonl --annotator cues --out spans.jsonl",
    )
)
def annotate(
    traces: Annotated[str, typer.Argument(help="Trace file (JSON lines), or bundled:attribution.")],
    to: Annotated[Path, typer.Option("--out", help="Where the spans go.")],
    preset: SpanRule = "paper",
    annotator: Annotated[str, typer.Option(help="given: the file's annotations; cues: lexical.")] = "given",
) -> None:
    """Find each behaviour's spans in annotated traces."""
    from mixprec import pipeline
    from mixprec.recipe import TracesSpec
    from mixprec.traces import spans, store

    spec = _checked(TracesSpec, "annotate", source=traces, preset=preset, annotator=annotator)
    found = pipeline.annotate_traces(spec, traces)
    spans.save_spans(to, found)
    summary = spans.summarise(found)
    table = Table("behaviour", "spans", "traces", title=f"{to}: {summary.traces} traces")
    for behaviour, count in summary.spans.items():
        table.add_row(behaviour, str(count), str(summary.traces_with[behaviour]))
    out.print(table)
    out.print(f"traces without a span: {summary.traces_without_span}; skipped: {summary.skipped or 'none'}")
    if preset == "aligned":
        outcomes = spans.compare_rules(store.load(traces)) if annotator == "given" else {}
        table = Table("behaviour", *spans.OUTCOMES, title="aligned against the released rule")
        for behaviour, counts in outcomes.items():
            table.add_row(behaviour, *(str(counts[outcome]) for outcome in spans.OUTCOMES))
        out.print(table)


@app.command(
    epilog=_epilog(
        "mixprec attribute spans.jsonl --out importance",
        "mixprec attribute spans.jsonl --preset released --out importance --model ./my-model",
        "accelerate launch --multi_gpu -m mixprec attribute spans.jsonl --out importance --device cuda",
    )
)
def attribute(
    spans_file: Annotated[Path, typer.Argument(metavar="SPANS", help="From 'mixprec annotate'.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the importance.")],
    model: Model = "smollm2-135m-instruct",
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
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Compute the importance of every linear module for the four behaviours."""
    from mixprec import artifacts, models, progress
    from mixprec.importance import artifact, streaming
    from mixprec.importance import attribute as stage
    from mixprec.recipe import ImportanceSpec
    from mixprec.report.grids import importance_grids
    from mixprec.report.heatmap import still_heatmap
    from mixprec.report.style import save_figure
    from mixprec.report.tables import top_modules_table
    from mixprec.report.terminal import rich_table
    from mixprec.traces import spans

    options = {"max_tokens": max_tokens, "resamples": resamples, "sweep_gb": sweep_gb}
    given = {name: value for name, value in options.items() if value is not None}
    flags = {"beyond_linear": beyond_linear, "stream": stream}
    spec = _checked(ImportanceSpec, "attribute", preset=preset, compare=tuple(compare or ()), **flags, **given)
    found = spans.load_spans(spans_file)
    if processes.one_only():
        progress.console.print(
            "accelerate launch --cpu starts one process; for several on CPUs give --multi_gpu instead"
        )
    where = {"dtype": dtype, "device": processes.join(device)}
    with processes.main_first():
        identity = artifacts.fingerprint(models.identity(model), dtype, device)
    result = stage.attribute(
        streaming.open_model(model, sweep_gb=spec.sweep_gb, **where) if stream else models.load(model, **where),
        found,
        to,
        presets=spec.presets,
        identity=identity,
        max_tokens=spec.max_tokens,
        resamples=spec.resamples,
        beyond_linear=spec.beyond_linear,
    )
    processes.leave()
    if not processes.is_main():
        return
    save_figure(still_heatmap(importance_grids(result)), to / "importance")
    out.print(rich_table(top_modules_table({"behaviours": artifact.top_modules(result)}), "Most important modules"))
    out.print(f"{to / 'importance.json'}, importance.png, importance.svg", soft_wrap=True)


@app.command(
    epilog=_epilog(
        "mixprec shift original/importance.json awq/importance.json --out shift",
        "mixprec shift distilled/importance.json base/importance.json --kind net --out distillation",
    )
)
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
    epilog=_epilog(
        "mixprec rank runs/quickstart/importance/importance.json",
        "mixprec rank importance.json last_up last_gate 1_up",
        "mixprec rank importance.json last_*",
    )
)
def rank(
    importance: Annotated[Path, typer.Argument(help="importance.json")],
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[LABEL]...", help="32_up, last_mlp, *_gate; default: the top ten.")
    ] = None,
) -> None:
    """Rank modules by their importance over all behaviours: overall, in their layer, among their kind."""
    from mixprec.importance import artifact
    from mixprec.importance import shift as shifts
    from mixprec.report.rankings import places_table
    from mixprec.report.terminal import rich_table

    found = shifts.find_places(artifact.load(importance), labels or ())
    out.print(rich_table(places_table(found), "Ranks by importance summed over behaviours"))


@app.command(
    epilog=_epilog(
        "mixprec plan recipes/protect_last_mlp.yaml --out plan.json",
        "mixprec plan quickstart --variant only_least_important --importance importance.json",
    )
)
def plan(
    recipe: RecipeName,
    variant: Annotated[str | None, typer.Option(help="Which variant; default: the only one.")] = None,
    importance: Annotated[Path | None, typer.Option(help="importance.json, for rules that rank.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Where plan.json goes; default: the terminal.")] = None,
    change: Overrides = None,
) -> None:
    """Write plan.json: every linear module with its format."""
    from mixprec import models, modules
    from mixprec import recipe as recipes
    from mixprec.plan.rules import build_plan
    from mixprec.plan.schema import dumps, save_plan

    chosen = recipes.load(recipes.find(recipe), change or ())
    variants = chosen.all_variants
    name = variant or next(iter(variants), "")
    if name not in variants or (variant is None and len(variants) > 1):
        raise UserError(f"--variant: choose one of {', '.join(variants) or 'none (this recipe has no plan)'}")
    inventory = modules.inventory(models.load_config(chosen.model.id, chosen.model.revision))
    made = build_plan(variants[name].plan, inventory, chosen.model.id, chosen.compress.method, _scores(importance))
    if to:
        save_plan(to, made)
        out.print(f"{to}: {len(made.modules)} modules")
    else:
        sys.stdout.write(dumps(made))


@app.command(epilog=_epilog("mixprec explain quickstart", "mixprec explain recipes/selective_32_up.yaml"))
def explain(
    recipe: RecipeName,
    importance: Annotated[Path | None, typer.Option(help="importance.json, for rules that rank.")] = None,
    change: Overrides = None,
) -> None:
    """Show modules, bits and bytes of a recipe's variants, without loading weights."""
    from mixprec import pipeline
    from mixprec import recipe as recipes
    from mixprec.report.formatting import size

    path = recipes.find(recipe)
    chosen = recipes.load(path, change or ())
    done = Path("runs") / path.stem / "importance" / "importance.json"
    scores = _scores(importance or (done if done.is_file() else None))
    table = Table(title=f"{path.name}: {chosen.model.id}", box=box.SIMPLE_HEAD)
    table.add_column("variant", no_wrap=True)
    table.add_column("modules")
    for column in ("code bits", "effective", "before", "after"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in pipeline.explain(chosen, scores).items():
        account = row["account"]
        if account is None:
            table.add_row(name, "waits for the importance", *["-"] * 4)
            continue
        table.add_row(
            name,
            "\n".join(f"{total['modules']} x {form}" for form, total in account["formats"].items()),
            f"{account['code_bits']:.3f}",
            f"{account['effective_bits']:.3f}",
            size(account["dense_bytes"]),
            size(account["packed_bytes"]),
        )
    out.print(table)
    out.print(
        "Bits per weight of the linear modules, without and with scales; size of the whole model in 16 bits and packed."
    )


@app.command(
    epilog=_epilog(
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
    epilog=_epilog(
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

    spec = _checked(
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


@app.command(epilog=_epilog("mixprec report runs/quickstart"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
) -> None:
    """Write a run's report.html and pictures again, and print its table."""
    from mixprec import artifacts
    from mixprec.report.html import write_report
    from mixprec.report.terminal import print_summary

    page = write_report(folder)
    print_summary(artifacts.read_json(folder / "summary.json"), out)
    out.print(f"[bold]{page}[/bold]", soft_wrap=True)


@app.command(name="ls", epilog=_epilog("mixprec ls"))
def list_recipes() -> None:
    """List the recipes that come with mixprec, and the runs in this folder."""
    from mixprec import recipe as recipes

    table = Table("recipe", "model", "what it does")
    for name, path in recipes.catalogue().items():
        chosen = recipes.load(path)
        table.add_row(name, chosen.model.id, chosen.title)
    out.print(table)
    finished = sorted(Path("runs").glob("*/summary.json"))
    for path in finished:
        out.print(f"run: {path.parent}  (report.html)")


@app.command(epilog=_epilog("mixprec cp quickstart my_experiment.yaml"))
def cp(
    recipe: RecipeName,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.")],
) -> None:
    """Copy a recipe, to change it."""
    from mixprec import artifacts
    from mixprec import recipe as recipes

    source = recipes.find(recipe)
    if to.exists():
        raise UserError(f"{to}: is there already; choose another name")
    artifacts.write_text(to, artifacts.read_text(source))
    out.print(f"{to}: run it with: mixprec run {to}")


@app.command(epilog=_epilog("mixprec validate recipes/*.yaml"))
def validate(recipe_files: Annotated[list[str], typer.Argument(metavar="RECIPE...")]) -> None:
    """Check recipes and their plans without loading weights."""
    from mixprec import pipeline
    from mixprec import recipe as recipes

    for name in recipe_files:
        path = recipes.find(name)
        chosen = recipes.load(path)
        _try(path, chosen)
        out.print(f"{path}: valid, {len(pipeline.explain(chosen, None))} variants")


def _try(path: Path, chosen: Recipe) -> None:
    from mixprec import pipeline

    try:
        pipeline.explain(chosen, None)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None


def _checked(kind: Any, verb: str, **values: Any) -> Any:
    """A recipe's part from options, with the recipe's checks."""
    from pydantic import ValidationError

    from mixprec.errors import from_pydantic

    try:
        return kind.model_validate(values)
    except ValidationError as problem:
        raise from_pydantic(problem, f"mixprec {verb}", kind) from None


def _scores(path: Path | None) -> Any:
    from mixprec.importance import artifact

    return None if path is None else artifact.scores_of(artifact.load(path))


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"mixprec {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    verb = context.invoked_subcommand
    if processes.count() > 1 and verb not in _PARALLEL:
        raise UserError(
            f"mixprec {verb} works in one process; of all verbs only {', '.join(_PARALLEL)} shares its work between "
            "several: start mixprec without accelerate launch or torchrun"
        )


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the user's error, 130 stopped by Ctrl-C, 1 ours (with its trace)."""
    errors = Console(stderr=True)
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into a code
            raise KeyboardInterrupt
    except UserError as problem:
        which = "" if processes.is_main() else f"process {processes.rank()}: "
        errors.print(f"[red]error:[/red] {escape(which + str(problem))}", soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        errors.print("stopped; what is finished is kept: the same command continues")
        sys.exit(130)
    except Exception as problem:
        # Usage errors of typer's own parser know how to show themselves and carry exit code 2.
        show = getattr(problem, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(problem, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)
