"""Verbs for other quantizers: export-plan, imatrix."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mixprec.cli.base import Device, Dtype, ModelId, Revision, app, calibrated, epilog, out, read_plan
from mixprec.core.errors import UserError


class Target(StrEnum):
    """Names of mixprec.contrib.export.TARGETS, which can't be imported for --help."""

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
    revision: Revision = None,
) -> None:
    """Write a plan in another quantizer's own syntax."""
    from mixprec.contrib.export import TARGETS
    from mixprec.core import artifacts

    made, source = read_plan(plan_file, model, revision=revision)
    try:
        text = TARGETS[to](made, source.decoder, method or made.method)
    except UserError as problem:
        raise UserError(f"{plan_file}: {problem}") from None
    if file:
        artifacts.write_text(file, text)
        out.print(f"{file}: {len(made.modules)} modules for {to}", soft_wrap=True)
    else:
        sys.stdout.write(text)


@app.command(
    epilog=epilog(
        "mixprec imatrix --traces bundled:attribution --samples 64 --out imatrix.gguf",
        "mixprec imatrix --model ./my-copy --text wiki.valid.raw --out imatrix.gguf",
    )
)
def imatrix(
    to: Annotated[Path, typer.Option("--out", help="The file.")],
    model: ModelId = "smollm2-135m-instruct",
    revision: Revision = None,
    text: Annotated[str | None, typer.Option(help="A text file.")] = None,
    traces: Annotated[str | None, typer.Option(help="Traces, or bundled:attribution.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples in all.")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each sample.")] = 512,
    seed: Annotated[int, typer.Option(help="Draws the samples.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Write llama.cpp's importance matrix from calibration data: llama-quantize --imatrix weighs errors by it."""
    from mixprec.checkpoint.gguf.imatrix import check_names, write_imatrix
    from mixprec.compress.inputs import mean_squares
    from mixprec.core.progress import bar
    from mixprec.models.model import Model

    if not text and not traces:
        raise UserError("imatrix: no data; give --text FILE or --traces bundled:attribution")
    source = Model(model, revision=revision, dtype=dtype, device=device)
    check_names(source.config)
    found = calibrated(source, text=text, traces=traces, samples=samples, tokens=tokens, seed=seed, solves=False)
    opened = source.open_blocks(("embedding", "norm"))
    with bar("imatrix", len(source.decoder.linears), "modules") as advance:
        squares, count = mean_squares(opened, source.decoder, found, to, advance)
    datasets = [source for source in (text, traces) if source]
    write_imatrix(to, squares, source.config, tokens=count, chunk=tokens, datasets=datasets)
    out.print(f"{to}: {len(squares)} modules, {count} tokens", soft_wrap=True)
