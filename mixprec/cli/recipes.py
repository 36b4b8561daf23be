"""Verbs on recipes and runs: run, plan, explain, validate, ls, cp, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from mixprec.cli.base import Data, Overrides, RecipeName, app, epilog, out, pairs, scores_in
from mixprec.core.errors import UserError, within

if TYPE_CHECKING:
    from mixprec.pipeline.checks import Checked
    from mixprec.pipeline.executors.placement import Placement
    from mixprec.results.run import RunResult


@app.command(
    epilog=epilog(
        "mixprec run quickstart",
        "mixprec run recipes/r1_traces_smollm2.yaml --data ../shared/data",
        "mixprec run quickstart --set model.dtype=bfloat16 --out runs/bf16",
        "mixprec run quickstart --max-memory 4",
        "mixprec run mine.yaml --on ray --out /shared/runs/mine",
        "mixprec run mine.yaml --on slurm --slurm partition=gpu --slurm timeout_min=240 --out /shared/runs/mine",
    )
)
def run(
    recipe: RecipeName,
    to: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/<recipe>.")] = None,
    data: Data = None,
    change: Overrides = None,
    max_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="10^9 bytes that the process may have; default: no limit.")
    ] = None,
    on: Annotated[str | None, typer.Option(help="Do the run's jobs on a cluster: ray or slurm.")] = None,
    jobs: Annotated[int | None, typer.Option(help="With --on: how many at once; default: what fits.")] = None,
    cpus: Annotated[
        int | None, typer.Option(help="With --on: cores of each job; default: OMP_NUM_THREADS, or 1.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="With --on: GPUs that device auto spreads a model over.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="With --on slurm: a parameter of submitit.")
    ] = None,
) -> None:
    """Run a recipe from end to end. What is already there is kept; a killed run continues."""
    from mixprec.api.runs import run as function

    placed = _placement(on, jobs, cpus, gpus, slurm)
    _print_run(function(recipe, to, data=data, change=change or (), max_memory=max_memory, on=placed))


def _placement(
    on: str | None, jobs: int | None, cpus: int | None, gpus: int | None, slurm: list[str] | None
) -> Placement | None:
    """What the options about clusters say. Raises UserError for those that say it without --on."""
    from mixprec.pipeline.executors.placement import Placement

    given = {name: value for name, value in (("jobs", jobs), ("cpus", cpus), ("gpus", gpus)) if value is not None}
    if on is None:
        if given or slurm:
            raise UserError(f"--{next(iter(given), 'slurm')}: goes with --on ray or --on slurm")
        return None
    return Placement(on, **given, slurm=pairs("--slurm", slurm or (), "partition=gpu"))  # type: ignore[arg-type]


def _print_run(found: RunResult) -> None:
    """A run's tables and pages."""
    from mixprec.report.shapes import read_ablation
    from mixprec.report.terminal import print_ablation

    folder, pages = found.folder, found.summary.get("pages") or {}
    out.print(found)
    if "ablation" in pages:
        out.print()
        print_ablation(read_ablation(folder / pages["ablation"] / "ablation.json"), out)
    out.print()
    out.print(str(folder / "report.html"), style="bold", soft_wrap=True)
    for name, where in pages.items():
        out.print(str(folder / where / f"{name}.html"), soft_wrap=True)


@app.command(
    epilog=epilog(
        "mixprec plan recipes/paper/table4_llama_8b.yaml --out plan.json",
        "mixprec plan quickstart --variant only_least_important --importance importance.json",
        "mixprec plan recipes/budget_smollm2.yaml --variant ours --scores fisher.json --out plan.json",
    )
)
def plan(
    recipe: RecipeName,
    variant: Annotated[str | None, typer.Option(help="Which variant; default: the only one.")] = None,
    importance: Annotated[Path | None, typer.Option(help="importance.json, for rules that rank.")] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="Table of predicted damage, for budgets; several: weighed together.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Where plan.json goes; default: the terminal.")] = None,
    change: Overrides = None,
) -> None:
    """Write plan.json: every linear module with its format."""
    from mixprec import pipeline
    from mixprec import recipe as recipes
    from mixprec.plan.rules import build_plan
    from mixprec.plan.schema import dumps, save_plan

    chosen = recipes.load(recipes.find(recipe), change or ())
    variants = chosen.all_variants
    name = variant or next(iter(variants), "")
    if name not in variants or (variant is None and len(variants) > 1):
        raise UserError(f"--variant: choose one of {', '.join(variants) or 'none (this recipe has no plan)'}")
    model = chosen.model.as_model()
    config, inventory, whole = model.config, model.decoder, chosen.checkpoint.whole
    spec = variants[name].plan
    ranking, method = scores_in(importance), chosen.compress.method
    with within(f"variant {name}"):
        table = pipeline.table_for(spec, inventory, lambda: pipeline.identity_here(model), scores)
        made = build_plan(
            spec,
            inventory,
            chosen.model.id,
            method,
            ranking,
            table=table,
            file_size=lambda each: chosen.checkpoint.written.bytes(whole(each, inventory), inventory, config),
        )
        made = whole(made, inventory)
        pipeline.check_variant(chosen, name, made, inventory, config)
    if to:
        save_plan(to, made)
        out.print(f"{to}: {len(made.modules)} modules")
    else:
        sys.stdout.write(dumps(made))


@app.command(
    epilog=epilog(
        "mixprec explain quickstart",
        "mixprec explain recipes/paper/table3_llama_8b.yaml",
        "mixprec explain paper/table1_llama_70b --gpu A100",
        "mixprec explain --attribution deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "mixprec explain recipes/paper/table4_llama_8b.yaml --set model.device=cuda --on ray --gpus 8",
    )
)
def explain(
    recipe: Annotated[str | None, typer.Argument(help="Recipe file, or its name in 'mixprec ls'.")] = None,
    importance: Annotated[Path | None, typer.Option(help="importance.json, for rules that rank.")] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="Table of predicted damage, for budgets; several: weighed together.")
    ] = None,
    attribution: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="No recipe: what attribution costs for this model.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="What vLLM's outputs take on: H100 80GB (default), H200, A100, L40S or RTX 4090.")
    ] = None,
    data: Data = None,
    change: Overrides = None,
    on: Annotated[
        str | None, typer.Option(help="What it takes on a cluster, job by job: ray, slurm or torchrun.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="With --on: GPUs, or cores, of a machine; default: 8.")
    ] = None,
    machines: Annotated[int | None, typer.Option(min=1, help="With --on: machines; default: 1.")] = None,
) -> None:
    """Show a recipe's data, modules, bits and bytes, and what it takes: downloads, GPUs, time, memory, disk.

    Loads no weights, downloads nothing.
    """
    from mixprec import pipeline
    from mixprec import recipe as recipes
    from mixprec.cli import explaining
    from mixprec.models.model import Model

    if (recipe is None) == (not attribution):
        raise UserError("mixprec explain: give a recipe, or models with --attribution")
    placed = explaining.check_placing(on, recipe=recipe is not None, gpus=gpus, machines=machines)
    if recipe is None:
        for model in attribution or ():
            explaining.print_cost(Model(model, dtype="bfloat16"))
        return
    path = recipes.find(recipe)
    chosen, known = recipes.read(path, change or ())
    done = Path("runs") / path.stem / "importance" / "importance.json"
    ranking = scores_in(importance or (done if done.is_file() else None))
    found = pipeline.checked(chosen, data, importance=ranking, tables=scores, known=known)
    found.require(str(path))
    explaining.print_recipe(path.name, chosen, found, gpu)
    if placed is not None:
        explaining.print_placing(chosen, found, placed, machines or 1, gpus or 8)
    _print_notes(found)


@app.command(epilog=epilog("mixprec validate recipes/*.yaml", "mixprec validate mine.yaml --data ../shared/data"))
def validate(
    recipe_files: Annotated[list[str], typer.Argument(metavar="RECIPE...")],
    data: Data = None,
    change: Overrides = None,
) -> None:
    """Check recipes, their data and their plans without loading weights; all that is wrong is told at once."""
    from mixprec import pipeline
    from mixprec import recipe as recipes

    refused = []
    for name in recipe_files:
        try:
            path = recipes.find(name)
            chosen, known = recipes.read(path, change or ())
            found = pipeline.checked(chosen, data, known=known)
            found.require(str(path))
        except UserError as problem:
            refused.append(str(problem))
            continue
        out.print(f"{path}: valid, {len(chosen.all_variants)} variants", soft_wrap=True)
        _print_notes(found)
    if refused:
        raise UserError("\n".join(refused))


def _print_notes(found: Checked) -> None:
    """What could not be checked here, and what this machine needs to run the recipe."""
    for told in found.unchecked:
        out.print(f"  not checked: {told}", soft_wrap=True)
    for told in found.lacking:
        out.print(f"  to run it here: {told}", soft_wrap=True)


@app.command(name="ls", epilog=epilog("mixprec ls"))
def list_recipes() -> None:
    """List the recipes that come with mixprec, and the runs in this folder."""
    from mixprec import recipe as recipes

    for name, path in recipes.catalogue().items():
        chosen = recipes.load(path)
        out.print(Text.assemble((name, "bold"), "  ", chosen.title))
        for what in ("paper", "needs", "takes"):
            if said := getattr(chosen.about, what):
                out.print(Padding(Text.assemble((f"{what}: ", "dim"), said), (0, 0, 0, 4)))
    finished = sorted(Path("runs").glob("*/summary.json"))
    for path in finished:
        out.print(f"run: {path.parent}  (report.html)")


@app.command(epilog=epilog("mixprec cp quickstart my_experiment.yaml"))
def cp(
    recipe: RecipeName,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.")],
) -> None:
    """Copy a recipe, to change it."""
    from mixprec import recipe as recipes
    from mixprec.core import artifacts
    from mixprec.recipe import jsonschema

    source = recipes.find(recipe)
    if to.exists():
        raise UserError(f"{to}: is there already; choose another name")
    known = next(iter(recipes.catalogue().values())).parent / jsonschema.FILE
    artifacts.write_text(to, jsonschema.pointing_to(artifacts.read_text(source), known))
    out.print(f"{to}: run it with: mixprec run {to}")


@app.command(epilog=epilog("mixprec schema --out recipe.schema.json"))
def schema(
    to: Annotated[Path | None, typer.Option("--out", help="Where it goes; default: the terminal.")] = None,
) -> None:
    """Write the JSON Schema of recipes: editors complete and check keys by it."""
    import json

    from mixprec.core import artifacts
    from mixprec.recipe import jsonschema

    text = json.dumps(jsonschema.schema(), indent=1, ensure_ascii=False) + "\n"
    if to:
        artifacts.write_text(to, text)
        out.print(str(to), soft_wrap=True)
    else:
        sys.stdout.write(text)


@app.command(epilog=epilog("mixprec report runs/quickstart", "mixprec report runs/gptq runs/awq --compare"))
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    compare: Annotated[bool, typer.Option("--compare", help="One page of all runs instead of a page each.")] = False,
    to: Annotated[Path | None, typer.Option("--out", help="With --compare: the page; default: compare.html.")] = None,
) -> None:
    """Write a run's report.html and pictures again, and print its table; of several runs one page with --compare.

    Runs that can't be compared with the others, as they were measured on other texts or by other rules, are named and
    left out.
    """
    from mixprec.api.runs import compare_runs
    from mixprec.api.runs import report as function

    if not compare:
        if to is not None:
            raise UserError("--out: goes with --compare; a run's own report is report.html in its folder")
        for folder in folders:
            _print_run(function(folder))
        return
    found = compare_runs(folders, to or Path("compare.html"))
    out.print(found)
    for what, why in found.left_out.items():
        out.print(f"left out: {what}: {why}", soft_wrap=True, markup=False)
    out.print()
    out.print(str(found.page), style="bold", soft_wrap=True)
