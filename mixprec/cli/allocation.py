"""The verb on budgets: pareto."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from mixprec.cli.base import Data, Overrides, RecipeName, app, epilog, out, scores_in
from mixprec.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mixprec.plan.pareto import Point
    from mixprec.recipe import Recipe


@app.command(
    epilog=epilog(
        "mixprec pareto budget_smollm2 --scores fisher.json --out curve",
        "mixprec pareto budget_smollm2 --run --first 2.5 --last 4.5 --step 0.25",
    )
)
def pareto(
    recipe: RecipeName,
    variant: Annotated[str | None, typer.Option(help="Whose budget; default: the first one with a budget.")] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="Table of predicted damage; several: weighed together.")
    ] = None,
    importance: Annotated[Path | None, typer.Option(help="importance.json, for scores: importance.")] = None,
    first: Annotated[float, typer.Option(help="Effective bits that the curve begins with.")] = 2.5,
    last: Annotated[float, typer.Option(help="Effective bits that it ends with.")] = 4.5,
    step: Annotated[float, typer.Option(help="Effective bits between two plans.")] = 0.125,
    measured: Annotated[
        bool, typer.Option("--run", help="Compress and evaluate every plan: the KL instead of a prediction.")
    ] = False,
    to: Annotated[Path | None, typer.Option("--out", help="Folder; default runs/<recipe>_pareto.")] = None,
    data: Data = None,
    change: Overrides = None,
) -> None:
    """Draw size against damage: a plan for each budget from 2.5 to 4.5 bits, beside one format for all modules."""
    from mixprec import recipe as recipes
    from mixprec.core import artifacts, locks
    from mixprec.plan.pareto import sizes
    from mixprec.report.pareto import pareto_figure
    from mixprec.report.style import save_figure

    path = recipes.find(recipe)
    chosen = recipes.load(path, change or ())
    name = _variant(chosen, variant)
    if measured and (scores or importance):
        option = "--scores" if scores else "--importance"
        raise UserError(
            f"{option}: with --run the recipe's own stages make scores and importance, so the file would be ignored; "
            "leave one of both out"
        )
    folder = to or Path("runs") / f"{path.stem}_pareto"
    wanted = sizes(first, last, step)
    if measured:
        rows, marks, alone, what = _measured(chosen, name, wanted, folder, data)
    else:
        rows, marks, alone, what = _predicted(chosen, name, wanted, folder, scores, importance)
    with locks.folder(folder):
        artifacts.write_json(folder / "pareto.json", rows)
        written = save_figure(pareto_figure(marks, alone, what), folder / "pareto")
    table = Table("plan", "effective bits", what, "modules", box=box.SIMPLE_HEAD)
    for row in rows["points"]:
        formats = ", ".join(f"{count} {form}" for form, count in row["formats"].items())
        table.add_row(row["name"], f"{row['effective_bits']:.3f}", f"{row['damage']:.4g}", formats)
    out.print(table)
    out.print(", ".join(str(each) for each in (folder / "pareto.json", *written)), soft_wrap=True)


def _variant(chosen: Recipe, variant: str | None) -> str:
    """The variant whose budget is taken."""
    budgets = [name for name, each in chosen.all_variants.items() if each.plan.budget is not None]
    if not budgets:
        raise UserError("mixprec pareto: the recipe has no plan with a budget; add plan: {budget: {…}}")
    if variant is not None and variant not in budgets:
        raise UserError(f"--variant: {variant!r} has no budget; those with one: {', '.join(budgets)}")
    return variant or budgets[0]


def _predicted(
    chosen: Recipe,
    name: str,
    wanted: Sequence[float],
    folder: Path,
    scores: Sequence[Path] | None,
    importance: Path | None,
) -> Any:
    """Plans and their damage by the scores alone."""
    from mixprec import pipeline
    from mixprec.plan.budget import importance_table
    from mixprec.plan.pareto import curve, uniform
    from mixprec.plan.rules import needs_importance
    from mixprec.plan.schema import save_plan
    from mixprec.report.pareto import Mark

    spec = chosen.all_variants[name].plan
    assert spec.budget is not None
    model = chosen.model.as_model()
    inventory = model.decoder
    method = spec.method or chosen.compress.method
    if needs_importance(spec):
        table = importance_table(scores_in(importance), spec.budget, inventory, chosen.model.id, method)
    else:
        found = pipeline.table_for(spec, inventory, lambda: pipeline.identity_here(model), scores)
        if found is None:
            raise UserError("mixprec pareto: give the table with --scores, or --run to make it and measure every plan")
        table = found
    points = curve(spec.budget, inventory, chosen.model.id, method, table, wanted)
    alone = uniform(spec.budget, inventory, chosen.model.id, method, table)
    for point in points:
        save_plan(folder / "plans" / f"{point.name}.json", point.plan)
    rows = {
        "scorer": table.scorer,
        "target": table.target,
        "points": [_row(p) for p in points],
        "uniform": [_row(p) for p in alone],
    }
    marks = [[Mark(p.effective_bits, p.damage, None, p.name) for p in each] for each in (points, alone)]
    return rows, *marks, f"predicted damage ({table.scorer})"


def _row(point: Point) -> dict[str, Any]:
    return {key: value for key, value in point._asdict().items() if key != "plan"}


def _measured(chosen: Recipe, name: str, wanted: Sequence[float], folder: Path, data: Path | None) -> Any:
    """Every plan as a variant of one run."""
    from mixprec import pipeline
    from mixprec.core import artifacts
    from mixprec.core.parsing import dump_yaml
    from mixprec.plan.pareto import at, counted
    from mixprec.plan.rules import PlanSpec
    from mixprec.plan.schema import Plan
    from mixprec.recipe import Recipe, Variant
    from mixprec.report.pareto import Mark

    spec = chosen.all_variants[name].plan
    assert spec.budget is not None
    if chosen.evaluate is None:
        raise UserError(
            "mixprec pareto --run: nothing to measure on; add evaluate: {traces: {source: …}} to the recipe"
        )
    variants = {f"{size:g}": Variant(plan=spec.model_copy(update={"budget": at(spec.budget, size)})) for size in wanted}
    alone = {
        str(choice): Variant(plan=PlanSpec(default=choice.format, sparsity=choice.sparsity, method=spec.method))
        for choice in spec.budget.candidates
        if choice.changes
    }
    both = {**variants, **alone}
    data_of = chosen.model_copy(update={"plan": None, "variants": both}).model_dump(mode="json", exclude_defaults=True)
    text = dump_yaml(data_of)
    summary = pipeline.Run(Recipe.model_validate(data_of), text, f"{name} from size to size", folder, data).run()

    def row(variant: str) -> dict[str, Any]:
        found = summary["variants"][variant]
        plan = Plan.model_validate(artifacts.read_json(folder / "variants" / variant / "plan.json"))
        keys = ("effective_bits", "bytes", "kl_mean_ci")
        more = {key: found[key] for key in keys}
        return {"name": variant, "damage": found["kl_mean"], "formats": counted(plan), **more}

    rows: dict[str, Any] = {"points": [row(each) for each in variants], "uniform": [row(each) for each in alone]}
    marks = [
        [
            Mark(r["effective_bits"], r["damage"], r["kl_mean_ci"] and tuple(r["kl_mean_ci"]), r["name"])
            for r in rows[part]
        ]
        for part in ("points", "uniform")
    ]
    return rows, *marks, "mean KL to the original, nats per token"
