"""What ``mixprec explain`` prints: data, variants, and what the stages take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from mixprec.cli.base import out

if TYPE_CHECKING:
    from mixprec.models.model import Model
    from mixprec.pipeline.checks import Checked
    from mixprec.pipeline.clusters import On
    from mixprec.pipeline.gpus import Need
    from mixprec.pipeline.stage import Stage
    from mixprec.recipe import Recipe

#: What is said of times that are bounds.
_AT_MOST = " ≤: as if every output ran to its limit; those that end by themselves take less."


def print_recipe(name: str, chosen: Recipe, found: Checked, gpu: str | None = None) -> None:
    """All that is known of a recipe before it runs. Raises UserError for a ``gpu`` whose figures aren't known."""
    from mixprec.pipeline import costs, gpus

    kind = gpus.find(gpu) if gpu else gpus.DEFAULT
    _print_downloads(gpus.downloads(chosen, found))
    _print_gpus(gpus.need(chosen, found, kind))

    if chosen.all_variants:
        _print_variants(name, chosen, found)
    _print_data(chosen, found)
    if chosen.evaluate is not None and chosen.evaluate.benchmarks:
        _print_outputs(chosen)
    _print_stages(costs.stages(chosen, found))
    if chosen.importance is not None:
        wanted = chosen.importance
        print_cost(chosen.model.as_model(), wanted.max_tokens, len(wanted.presets))


def _print_downloads(models: dict[str, int]) -> None:
    """What comes from the hub."""
    from mixprec.report.formatting import size

    if models:
        named = ", ".join(f"{name} {size(count)}" for name, count in models.items())
        out.print(f"To download: {named}.")


def _print_gpus(need: Need | None) -> None:
    """Which GPUs the outputs need, and for how long."""
    from mixprec.report.formatting import size

    if need is None:
        return
    few = max(need.gpus, need.least)
    out.print(
        f"GPUs: {few} x {need.gpu}, {size(need.weights // few)} of weights on each, {need.at_once} outputs at once: "
        f"about {_hours(need.hours)} for {need.outputs:,} outputs as long as the paper's traces, {_hours(need.most)} "
        "where all run to their limit. From the data sheet, to a factor of two; compression and attribution are extra."
    )
    if few > need.gpus:
        out.print(f"The recipe names {need.gpus}, which can't hold the model and one output: set engine.gpus to {few}.")


def _hours(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 1.5 else f"{hours:,.0f} h"


def _print_data(chosen: Recipe, found: Checked) -> None:
    """What the stages see."""
    from mixprec.pipeline.usage import used

    listed = list(used(chosen, found))
    if not listed:
        return
    table = Table(title="Data", box=box.SIMPLE_HEAD)
    table.add_column("what")
    for column in ("", "tokens", "longest"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("spans")
    for each in listed:
        about = "≤ " if each.most else "" if each.exact else "≈ "
        spans = ", ".join(f"{count:,} {behaviour.replace('_', ' ')}" for behaviour, count in sorted(each.spans.items()))
        table.add_row(
            each.key, f"{each.items:,} {each.what}", f"{about}{each.tokens:,}", f"{about}{each.longest:,}", spans
        )
    out.print(table)
    if not all(each.exact or each.most for each in listed):
        out.print("≈: estimated from a part of the text, or from its bytes where the tokenizer is not on this machine.")
    if any(each.most for each in listed):
        out.print("≤: what is written to the limit; outputs that end by themselves are shorter.")


def _print_stages(listed: list[Stage]) -> None:
    """Time and memory of each stage, and of all; what it leaves on the disk, and what goes there and comes from it."""
    from mixprec.pipeline import costs
    from mixprec.report.formatting import size

    whole = costs.total(listed)
    stages, disk = (Table(title=title, box=box.SIMPLE_HEAD) for title in ("Stages", "Disk"))
    for column in ("stage", "work"):
        stages.add_column(column)
    disk.add_column("stage")
    for table, columns in ((stages, ("CPU time", "memory")), (disk, ("stays", "read", "written"))):
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
    for each in (*listed, whole):
        if each is whole:
            stages.add_section()
            disk.add_section()
        stages.add_row(each.name, each.work, _time(each.seconds, each.most), size(each.memory))
        disk.add_row(each.name, *(size(count) if count else "" for count in (each.disk, *each.traffic)))
    out.print(stages)
    out.print(
        "Rough, by arithmetic: CPU time of one core of a 2-core AMD EPYC, whose recipes took half to twice of it; "
        "memory is the most at once, without an allocator's waste. Nothing is taken for stages that are done."
        f"{_AT_MOST if whole.most else ''}"
    )
    out.print(disk)
    out.print(
        "What stays, and what is read and written where no file stays in the system's cache from one pass to the next."
    )


def cluster_named(on: str | None, *, recipe: bool, **amounts: int | None) -> On | None:
    """``on`` as a kind of cluster.

    Raises UserError for one that isn't known, for one without a ``recipe``, whose jobs it does, and for ``amounts``
    without a cluster.
    """
    from mixprec.core.errors import UserError
    from mixprec.pipeline import clusters

    given = [name for name, value in amounts.items() if value is not None]
    if on is None and given:
        raise UserError(f"--{given[0]}: goes with --on {', '.join(clusters.ON[:-1])} or {clusters.ON[-1]}")
    known = next((each for each in clusters.ON if each == on), None)
    if on is not None and known is None:
        raise UserError(f"--on {on}: not known; choose one of {', '.join(clusters.ON)}")
    if on is not None and not recipe:
        raise UserError(f"--on {on}: goes with a recipe; leave it out, or --attribution")
    return known


def print_placing(chosen: Recipe, found: Checked, on: On, machines: int, gpus: int) -> None:
    """What each job of a recipe takes on a cluster."""
    from mixprec.pipeline import clusters
    from mixprec.report.formatting import size

    there = chosen.model.device != "cpu"
    cluster = clusters.h200s(machines, gpus) if there else clusters.cores(machines, gpus)
    made = clusters.placing(chosen, found, on, cluster)
    unit = "GPUs" if there else "cores"
    table = Table(title=f"On {on}: {machines} × {gpus} {unit}", box=box.SIMPLE_HEAD)
    table.add_column("stage" if on == "torchrun" else "job")
    for column in (unit, "time", "memory", "storage", "network"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in made.listed:
        sizes = (size(count) for count in (each.memory, each.storage, each.network))
        table.add_row(each.name, str(max(each.gpus, 1)), _time(each.seconds, each.most), *sizes)
    held = None if made.gpu_seconds is None else made.gpu_seconds / 3600
    most = any(each.most for each in made.listed)
    hours = "unknown" if held is None else f"{'≤ ' if most else ''}{held:.1f}"
    table.add_section()
    sizes = (size(count) for count in (made.storage, made.network))
    table.add_row(f"{len(made.listed)} in all", hours + " h held", _time(made.seconds, most), "", *sizes)
    out.print(table)
    out.print(
        f"Rough, by arithmetic: time of {cluster.rates.name}, and until all is done where jobs wait for one another "
        "and for room; memory of each process; bytes from and to the folder that all share, and between processes. "
        f"What the rates are taken from: docs/large.md.{_AT_MOST if most else ''}"
    )


def _time(seconds: float | None, most: bool = False) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 90:
        time = f"{max(seconds, 1):.0f} s"
    else:
        time = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"≤ {time}" if most else time


def _print_outputs(chosen: Recipe) -> None:
    """What the benchmarks ask for: outputs, and at most so many tokens."""
    spec = chosen.evaluate
    assert spec is not None
    outputs = spec.outputs()
    if spec.protocol == "likelihood":
        out.print(
            f"Likelihood of the answers to {sum(outputs.values()):,} questions ({', '.join(outputs)})"
            f"{' behind the thinking of ' + spec.after if spec.after else ''}: nothing is generated."
        )
        return
    variants = len(chosen.all_variants)
    table = Table(title="Benchmarks", box=box.SIMPLE_HEAD)
    for column in ("benchmark", "questions", "passes", "outputs", "tokens at most"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for name, count in outputs.items():
        passes = len(spec.seeds)
        most = count * spec.max_new_tokens * variants
        table.add_row(name, f"{count // passes:,}", str(passes), f"{count:,}", f"{most:,}")
    total = sum(outputs.values())
    table.add_row("all", "", "", f"{total:,}", f"{total * spec.max_new_tokens * variants:,}")
    out.print(table)
    engines: list[str] = [spec.engine.kind] if chosen.answering else []
    engines += [f"servers ({', '.join(spec.servers)})"] if spec.servers else []
    out.print(
        f"By {' and '.join(engines)}, {spec.prompts} prompts, temperature {spec.temperature:g}, top-p {spec.top_p:g}, "
        f"at most {spec.max_new_tokens:,} new tokens an output: outputs of one variant, tokens of all. Outputs that "
        "end by themselves take fewer."
    )


def print_cost(model: Model, limit: int | None = None, presets: int = 1) -> None:
    """What attribution costs, for the longest of the paper's traces, or what the model or ``limit`` leaves of it."""
    from mixprec.importance.cost import PAPER_CORPUS, cost
    from mixprec.models import conversion
    from mixprec.report.costs import about, cost_table
    from mixprec.report.terminal import rich_table

    with conversion.without_converting():
        config = model.config
    tokens = min(limit or model.context, model.context, PAPER_CORPUS.longest)
    found = cost(config, model.dtype, tokens, presets)
    out.print()
    out.print(rich_table(cost_table([found]), f"Attribution of {model.id}"))
    out.print(about(found))


def _print_variants(name: str, chosen: Recipe, found: Checked) -> None:
    from mixprec import pipeline
    from mixprec.plan.bits import dense_bytes
    from mixprec.report.formatting import size

    assert found.inventory is not None

    table = Table(title=f"{name}: {chosen.model.id}", box=box.SIMPLE_HEAD)
    formats = Table(title="Formats", box=box.SIMPLE_HEAD)
    for one, columns in (
        (table, ("variant", "code bits", "effective", "packed", "on disk")),
        (formats, ("variant", "format", "modules", "packed")),
    ):
        for column in columns:
            one.add_column(column, justify="left" if column in ("variant", "format") else "right", no_wrap=True)
    for name, row in pipeline.rows(chosen, found).items():
        account = row["account"]
        if account is None:
            table.add_row(name, "known when it runs", *["-"] * 3)
            continue
        table.add_row(
            name,
            f"{account.code_bits:.3f}",
            f"{account.effective_bits:.3f}",
            size(account.packed_bytes),
            size(row["bytes_on_disk"]),
        )
        for number, (format, total) in enumerate(account.formats.items()):
            formats.add_row("" if number else name, format, f"{total.modules:,}", size(total.bytes))
        formats.add_row("", "all else, 16 bits", "", size(account.other_bytes), end_section=True)
    out.print(table)
    out.print(
        "Bits per weight of the linear modules, without and with scales; bytes of the whole model packed, and of its "
        f"files with weights. In 16 bits it takes {size(dense_bytes(found.inventory))}."
    )
    out.print(formats)
