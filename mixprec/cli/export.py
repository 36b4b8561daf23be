"""Verbs for other quantizers: export-plan."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mixprec.cli.base import app, epilog, out
from mixprec.errors import UserError


class Target(StrEnum):
    """Names of mixprec.export.TARGETS, which can't be imported for --help."""

    gptqmodel = "gptqmodel"
    llmcompressor = "llmcompressor"
    autoround = "autoround"
    llamacpp = "llamacpp"
    modelopt = "modelopt"


@app.command(
    epilog=epilog(
        "mixprec export-plan --to llmcompressor plan.json --out recipe.yaml",
        "mixprec export-plan --to gptqmodel plan.json --method gptaq",
        "mixprec export-plan --to llamacpp plan.json --out tensor-types.txt",
    )
)
def export_plan(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json, from 'mixprec plan'.")],
    to: Annotated[Target, typer.Option("--to", help="The quantizer that shall read it.")],
    file: Annotated[Path | None, typer.Option("--out", help="Where it goes; default: the terminal.")] = None,
    method: Annotated[str | None, typer.Option(help="The target's method; default: the plan's.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model lies; default: the plan's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
) -> None:
    """Write a plan in another quantizer's own syntax."""
    from mixprec import artifacts, models, modules
    from mixprec.export import TARGETS
    from mixprec.plan.schema import load_plan

    data = artifacts.read_json(plan_file)
    if not isinstance(data, dict) or not isinstance(data.get("model"), str):
        raise UserError(f"{plan_file}: key 'model' is missing; is this a plan.json, from 'mixprec plan'?")
    inventory = modules.inventory(models.load_config(model or data["model"], revision))
    made = load_plan(plan_file, inventory)
    try:
        text = TARGETS[to](made, inventory, method or made.method)
    except UserError as problem:
        raise UserError(f"{plan_file}: {problem}") from None
    if file:
        artifacts.write_text(file, text)
        out.print(f"{file}: {len(made.modules)} modules for {to}", soft_wrap=True)
    else:
        sys.stdout.write(text)
