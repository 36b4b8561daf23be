"""Verbs on checkpoints as files: check, inspect, diff, convert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich import box
from rich.table import Table

from mixprec.cli.base import BaseModel, Runtime, app, epilog, out, read_plan
from mixprec.core.errors import UserError

if TYPE_CHECKING:
    from mixprec.checkpoint.check import Target, Verdict
    from mixprec.models.model import Model
    from mixprec.plan.schema import Plan
    from mixprec.report.layout import LayoutRow


_Opened = TypeVar("_Opened")


class Written(StrEnum):
    """Names of mixprec.checkpoint.formats.FORMATS."""

    dense = "dense"
    compressed_tensors = "compressed-tensors"
    gptq = "gptq"
    awq = "awq"
    mlx = "mlx"
    gguf = "gguf"


Folder = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder, or a GGUF file.")]
ToHub = Annotated[str | None, typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload it afterwards.")]


@app.command(
    epilog=epilog(
        "mixprec check plan.json --runtime vllm --format compressed-tensors",
        "mixprec check recipes/paper/table3_llama_8b.yaml --runtime vllm --device cpu",
        "mixprec check plan.json --runtime vllm --version 0.31 --format gptq --out loads.json",
    )
)
def check(
    what: Annotated[str, typer.Argument(metavar="RECIPE|PLAN", help="A recipe, or plan.json.")],
    runtime: Annotated[Runtime, typer.Option(help="What has to load it.")],
    format: Annotated[
        Written | None,
        typer.Option(help="Of the checkpoint; default: the recipe's; of a plan, what is packed for this runtime."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Of the runtime; default: the newest that is known.")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, apple, pascal, volta, turing, ampere, ada, hopper, blackwell; default: ampere, apple for MLX."
        ),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of a recipe; default: all of them.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Write the nearest plan that loads.")] = None,
) -> None:
    """Say whether a runtime loads a plan, what it refuses and why, and the nearest plan that loads. Reads no weights.

    Exit code 2 where something is refused.
    """
    from mixprec.checkpoint import check as checking
    from mixprec.plan.schema import save_plan

    plans, model, its_format = _plans(what, variant, runtime.value)
    target = checking.Target(runtime.value, format.value if format else its_format, version, device)
    config = model.config if target.format == "gguf" else None  # which GGUF files alone depend on
    verdicts = {name: checking.check(plan, model.decoder, config, target) for name, plan in plans.items()}
    for name, verdict in verdicts.items():
        _print_verdict(name, plans[name], target, verdict)
    if to:
        nearest = [verdict.nearest or plans[name] for name, verdict in verdicts.items() if not verdict.whole]
        if len(verdicts) != 1 or len(nearest) != 1 or (verdict.nearest is None and not verdict.loads):
            raise UserError(f"--out {to}: there is no single plan to write; choose one with --variant")
        save_plan(to, nearest[0])
        out.print(f"{to}: {len(nearest[0].modules)} modules", soft_wrap=True)
    if not all(verdict.loads for verdict in verdicts.values()):
        raise typer.Exit(2)


def _plans(what: str, variant: str | None, runtime: str) -> tuple[dict[str, Plan], Model, str]:
    """Name -> plan; their model, and the checkpoint format that is meant."""
    from mixprec import recipe as recipes
    from mixprec.checkpoint.runtimes import packed_for
    from mixprec.plan.rules import build_plan, needs_importance, needs_spectra, tables_wanted

    if Path(what).suffix == ".json":
        made, model = read_plan(Path(what))
        return {what: made}, model, packed_for(runtime)
    chosen = recipes.load(recipes.find(what))
    model = chosen.model.as_model()
    names = [variant] if variant else list(chosen.all_variants)
    if not names or (variant and variant not in chosen.all_variants):
        raise UserError(f"--variant: choose one of {', '.join(chosen.all_variants) or 'none (no plan in this recipe)'}")
    plans = {}
    for name in names:
        spec = chosen.all_variants[name].plan
        if needs_importance(spec) or needs_spectra(spec) or tables_wanted(spec):
            out.print(f"{name}: its plan is known when it runs; check the run's plan.json")
            continue
        made = build_plan(spec, model.decoder, chosen.model.id, chosen.compress.method)
        plans[name] = chosen.checkpoint.whole(made, model.decoder)
    return plans, model, chosen.checkpoint.format


def _print_verdict(name: str, plan: Plan, target: Target, verdict: Verdict) -> None:
    from mixprec.checkpoint import check as checking

    if verdict.loads:
        needs = f"; needs {verdict.needs}" if verdict.needs else ""
        out.print(f"{name}: loads in {target}{needs}", soft_wrap=True)
        return
    table = Table("modules", "why", title=f"{name}: refused by {target}", box=box.SIMPLE_HEAD)
    for reason, addresses in checking.by_reason(verdict).items():
        more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
        table.add_row(f"{addresses[0]}{more}", reason)
    out.print(table)
    out.print(checking.advice(plan, verdict), soft_wrap=True)


@app.command(
    epilog=epilog(
        "mixprec inspect runs/quickstart/variants/uniform_w3/checkpoint",
        "mixprec inspect checkpoint --picture layout.png",
    )
)
def inspect(
    checkpoint: Folder,
    picture: Annotated[Path | None, typer.Option(help="Write a picture, layer by kind (PNG or SVG).")] = None,
    every: Annotated[bool, typer.Option("--all", help="A line for every module, not for every format.")] = False,
) -> None:
    """Show how each linear module lies in a checkpoint, whoever wrote it: format and bits on disk."""
    from mixprec.checkpoint.opening import open_stored
    from mixprec.report.formatting import size
    from mixprec.report.layout import LayoutRow, on_disk, written_table
    from mixprec.report.terminal import rich_table

    found, known = _verified(checkpoint, open_stored)
    planned = _planned(checkpoint)
    rows = [
        LayoutRow(module, layout.container, layout.name, planned.get(module.address, ""), layout.bytes)
        for module in found.inventory.matrices
        for layout in [found.layouts[module.address]]
    ]
    out.print(str(checkpoint), soft_wrap=True)
    out.print(rich_table(written_table(rows, every)))
    for row in [row for row in rows if not row.module.layer]:
        out.print(f"{row.module.kind}: {row.format}, {size(row.bytes)}, {on_disk([row]):.4f} bits per weight on disk")
    rows = [row for row in rows if row.module.layer]
    out.print(f"{len(rows)} linear modules, {on_disk(rows):.4f} bits per weight on disk")
    for note in found.notes:
        out.print(note, soft_wrap=True)
    out.print("checksums: as written" if known else "checksums: none in this checkpoint")
    if picture:
        from mixprec.core import publish
        from mixprec.report.picture import layout_figure  # matplotlib takes longer than all of the above

        bits, what = _drawn(rows)
        with publish.atomic_path(picture) as temporary:
            figure = layout_figure(found.inventory.linears, bits, f"{'/'.join(checkpoint.parts[-2:])}: {what}")
            figure.savefig(temporary, format=picture.suffix.removeprefix(".") or "png", dpi=150)
        out.print(f"{picture}", soft_wrap=True)


def _verified(checkpoint: Path, opened: Callable[[Path], _Opened]) -> tuple[_Opened, bool]:
    """A checkpoint as ``opened`` has it, and whether it has checksums, which its files then agree with."""
    from mixprec.checkpoint.integrity import verify
    from mixprec.models import locate
    from mixprec.models.locate import BUNDLED

    if str(checkpoint) == BUNDLED:
        checkpoint = Path(locate.resolve(BUNDLED))
    if not checkpoint.exists() and str(checkpoint).startswith("~/"):
        checkpoint = checkpoint.expanduser()  # as recipes and other verbs do; shells do so where it isn't quoted
    known = checkpoint.is_dir() and verify(checkpoint)
    return opened(checkpoint), known


def _planned(checkpoint: Path) -> dict[str, str]:
    """Address -> what the plan in a checkpoint's mixprec.json says; empty where there is none."""
    from mixprec.checkpoint.integrity import card_of

    modules = card_of(checkpoint).get("plan", {}).get("modules", {})
    return {address: "@".join(filter(None, (m["format"], m.get("sparsity")))) for address, m in modules.items()}


def _drawn(rows: Sequence[LayoutRow]) -> tuple[list[float], str]:
    """Bits per weight of each module, and what they are: those that dense values stand for, where a plan says it."""
    from mixprec.numerics.formats import parse_format
    from mixprec.plan import bits
    from mixprec.report.layout import on_disk

    if all(row.planned and row.container == "dense" for row in rows):
        stored = [bits.storage(row.module, parse_format(row.planned.partition("@")[0])) for row in rows]
        total = sum(each.bits for each in stored) / sum(each.weights for each in stored)
        return [each.effective_bits for each in stored], f"{total:.3f} effective bits by its plan, written dense"
    return [on_disk([row]) for row in rows], f"{on_disk(rows):.3f} bits per weight"


@app.command(
    epilog=epilog(
        "mixprec diff smollm2-135m-instruct checkpoint", "mixprec diff ours theirs --worst 20 --out diff.json"
    )
)
def diff(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A folder, GGUF file or bundled name: errors are relative to it.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same model.")],
    worst: Annotated[int, typer.Option(min=1, help="Lines of the table.")] = 10,
    to: Annotated[Path | None, typer.Option("--out", help="All modules, as JSON.")] = None,
) -> None:
    """Compare two checkpoints module by module, whoever wrote them: formats, bits on disk, weights."""
    from mixprec.checkpoint.compare import diff as compare
    from mixprec.checkpoint.opening import open_checkpoint
    from mixprec.core import artifacts
    from mixprec.core.progress import bar
    from mixprec.report.layout import formats_table, worst_table
    from mixprec.report.terminal import rich_table

    (a, _), (b, _) = (_verified(each, open_checkpoint) for each in (first, second))
    with bar("diff", len(a.inventory.planned(b.layouts)), "modules") as advance:
        found = compare(a, b, advance)
    if to:
        artifacts.write_json(to, {address: difference._asdict() for address, difference in found.items()}, seal=False)
    listed = list(found.values())
    for name, path, checkpoint in (("A", first, a), ("B", second, b)):
        out.print("; ".join([f"{name}: {path} ({checkpoint.container})", *checkpoint.notes]), soft_wrap=True)
    out.print(rich_table(formats_table(listed), "‖B − A‖ / ‖A‖ of the weights"))
    apart = worst_table(listed, worst)
    if apart.rows:
        out.print(rich_table(apart, "Furthest apart"))


@app.command(
    epilog=epilog(
        "mixprec convert checkpoint --format gptq --out checkpoint-gptq",
        "mixprec convert theirs --format compressed-tensors --out ours --push-to-hub me/model-w4",
    )
)
def convert(
    checkpoint: Folder,
    format: Annotated[Written, typer.Option(help="What it becomes.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the new checkpoint.")],
    base_model: BaseModel = None,
    repository: ToHub = None,
) -> None:
    """Write a packed checkpoint in another packed format: the same codes and scales, or a refusal."""
    from mixprec.checkpoint.convert import convert as write
    from mixprec.checkpoint.convert import plan_of
    from mixprec.checkpoint.formats import checkpoint_format
    from mixprec.checkpoint.hub import push
    from mixprec.checkpoint.opening import open_checkpoint
    from mixprec.core.progress import bar

    found = open_checkpoint(checkpoint)
    with bar("convert", len(plan_of(found).modules), "modules") as advance:
        write(found, checkpoint_format(format.value), to, advance, base_model)
    out.print(f"{to}: {found.container} as {format.value}", soft_wrap=True)
    if repository:
        out.print(push(to, repository), soft_wrap=True)
