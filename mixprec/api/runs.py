"""Recipes: run, report, and several runs compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixprec import pipeline, recipe
from mixprec.api.arguments import given
from mixprec.api.checking import AnyModel, model_of
from mixprec.core import artifacts, locks
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.core.parsing import dump_yaml
from mixprec.core.progress import OnStep, telling
from mixprec.pipeline.executors.placement import Placement, require
from mixprec.pipeline.quantize import Job, recipe_of, text_of
from mixprec.recipe import Recipe
from mixprec.report.html import write_comparison, write_report
from mixprec.results.comparison import Comparison
from mixprec.results.run import RunResult


@typed()
def run(
    what: str | Path | Recipe,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    change: Sequence[str] = (),
    max_memory: float | None = None,
    on: Placement | None = None,
    progress: OnStep | None = None,
) -> RunResult:
    """Run a recipe from end to end: a file, a name in ``mixprec ls``, or a Recipe, which needs ``out``.

    ``out``: the run's folder, default runs/<recipe>; what is already there is kept, and a killed run continues.
    ``data``: folder of data: sources. ``change``: keys, as in ["model.dtype=bfloat16"]. ``max_memory``: 10^9 bytes
    that the process may have; a stage that needs more by the estimate is refused before any work, one that takes more
    all the same is stopped. ``on``: a cluster that does the run's jobs, such as Placement("ray").

    Raises UserError for all that is wrong with the recipe, at once, where memory runs out, and where the cluster's
    package is missing.
    """
    if max_memory is not None and not 0 < max_memory < 1e9:
        raise UserError(f"max_memory: {max_memory:g} is no amount of memory; give 10^9 bytes, such as 16")
    if max_memory is not None and on is not None:
        raise UserError("max_memory: is of one process; on a cluster its own settings limit jobs (--slurm mem_gb=64)")
    known: list[str] = []
    if isinstance(what, Recipe):
        if out is None or change:
            raise UserError("run: a Recipe needs out, a folder, and takes no change")
        chosen, name, where = what, Path(out).name, ""
        text = text_of(what, Path(out))
    else:
        path = recipe.find(str(what))
        chosen, known = recipe.read(path, change)
        name, where = path.stem, str(path)
        text = dump_yaml(chosen.model_dump(mode="json", exclude_defaults=True)) if change else artifacts.read_text(path)
    folder = Path(out) if out is not None else Path("runs") / name
    with telling(progress):
        made = pipeline.Run(chosen, text, name, folder, None if data is None else Path(data))
        made.limit = None if max_memory is None else round(max_memory * 1e9)
        if on is not None:
            require(on)
        made.check(where, known, here=on is None)
        return RunResult(folder, made.run(on))


@typed()
def report(folder: str | Path) -> RunResult:
    """Write a run's report.html and pictures again.

    Raises UserError where there is no run, or it is unfinished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    with locks.folder(folder):
        write_report(folder)
    return RunResult.load(folder)


@typed()
def compare_runs(folders: Sequence[str | Path], out: str | Path = "compare.html") -> Comparison:
    """Write one page of several runs, to ``out``: their variants in one table, on one plot, with paired differences.

    Runs that were measured on other texts or by other rules than most are named (``left_out``) and not shown.

    Raises UserError where fewer than two can be compared.
    """
    return Comparison.of(write_comparison([Path(each) for each in folders], Path(out)), Path(out))


@typed()
def quantize_recipe(
    model: AnyModel,
    bits: float | None,
    runtime: str,
    *,
    file_mb: float | None = None,
    protect: Sequence[str] = (),
    method: str | None = None,
    traces: str | Path | None = None,
    text: str | Path | None = None,
    samples: int | None = None,
    held_out: str | Path | None = None,
    runtime_device: str | None = None,
    runtime_version: str | None = None,
    base_model: str | None = None,
    tune: bool = False,
) -> Recipe:
    """The recipe that ``quantize`` runs; reads no weights. Arguments and errors are those of ``quantize``."""
    job = Job(
        model_of(model),
        bits,
        runtime,
        file_mb=file_mb,
        protect=tuple(protect),
        method=method,
        traces=None if traces is None else str(traces),
        text=None if text is None else str(text),
        samples=samples,
        device=runtime_device,
        version=runtime_version,
        base_model=base_model,
        tune=tune,
        **given(held_out=None if held_out is None else str(held_out)),
    )
    return recipe_of(job)


@typed()
def quantize(
    model: AnyModel,
    bits: float | None,
    runtime: str,
    out: str | Path,
    *,
    file_mb: float | None = None,
    protect: Sequence[str] = (),
    method: str | None = None,
    traces: str | Path | None = None,
    text: str | Path | None = None,
    samples: int | None = None,
    held_out: str | Path | None = None,
    runtime_device: str | None = None,
    runtime_version: str | None = None,
    base_model: str | None = None,
    tune: bool = False,
    progress: OnStep | None = None,
) -> RunResult:
    """Quantize ``model`` to ``bits`` effective bits per weight, so that ``runtime`` loads it: vllm, sglang, llama.cpp,
    mlx or transformers. Calibrates, scores, plans, compresses and evaluates; the checkpoint is
    ``.checkpoint("quantized")``.

    ``out``: the run's folder; a killed call continues. ``file_mb``: with ``bits`` None, the size of the whole file in
    10^6 bytes; embedding and head are planned too, where the runtime loads them. ``protect``: selectors of modules to
    keep, such as last_mlp.
    ``method``: by default gptq, for llama.cpp its own types. ``traces``, ``text``: calibration data, by default
    bundled traces; ``samples`` of 512 tokens. ``held_out``: annotated traces to evaluate on, by default bundled ones.
    ``runtime_device``: where the runtime works: cpu, apple or a generation of GPUs; ``runtime_version``: of it.
    ``base_model``: the model's id on the hub, for the card of a local one. ``tune``: scales and norms at the end, by
    what the original predicts; the whole model has to fit into memory. It runs a recipe, ``out``/recipe.yaml
    (docs/quantize.md).

    Raises UserError for a size that the runtime's formats can't reach, with the nearest that they can.
    """
    chosen = quantize_recipe(
        model,
        bits,
        runtime,
        file_mb=file_mb,
        protect=protect,
        method=method,
        traces=traces,
        text=text,
        samples=samples,
        held_out=held_out,
        runtime_device=runtime_device,
        runtime_version=runtime_version,
        base_model=base_model,
        tune=tune,
    )
    return run(chosen, out, progress=progress)
