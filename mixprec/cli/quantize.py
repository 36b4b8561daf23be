"""The usual job in one command: quantize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mixprec.cli.base import BaseModel, Device, Dtype, Runtime, app, as_options, epilog, out


@app.command(
    epilog=epilog(
        "mixprec quantize smollm2-135m-instruct --bits 3.5 --runtime vllm --out out",
        "mixprec quantize Qwen/Qwen3-8B --bits 4 --runtime llama.cpp --dtype bfloat16 --device cuda --out qwen",
        "mixprec quantize smollm2-135m-instruct --file-mb 100 --runtime llama.cpp --out small",
        "mixprec quantize ./my-model --bits 3.5 --runtime transformers --protect last_mlp --traces mine.jsonl --out q",
        "mixprec quantize ./my-model --bits 3.5 --runtime vllm --recipe-only --out q",
    )
)
def quantize(
    model: Annotated[str, typer.Argument(help="Bundled name, hub id, folder or GGUF file.")],
    runtime: Annotated[Runtime, typer.Option(help="What has to load the result.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the run; the checkpoint lies in it.")],
    bits: Annotated[
        float | None, typer.Option(help="Effective bits per weight of the linear modules, scales included.")
    ] = None,
    file_mb: Annotated[
        float | None,
        typer.Option(
            help="In the place of --bits: size of the whole file, 10⁶ bytes; embedding and head are planned too, "
            "where the runtime loads them."
        ),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(help="Modules that stay as they are, such as last_mlp, 32_up, *_gate; once for each."),
    ] = None,
    traces: Annotated[
        str | None, typer.Option(help="Calibration: traces. Default: bundled:attribution, or --text alone.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Calibration: a text file.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Calibration: samples of 512 tokens. Default: as many as it takes.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Quantizer. Default: gptq; for llama.cpp ggml, its own types.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Annotated traces to measure the result on. Default: bundled:held_out.")
    ] = None,
    runtime_device: Annotated[
        str | None,
        typer.Option(
            help="Where the runtime works: cpu, apple, turing, ampere, ada, hopper, blackwell … Default: ampere."
        ),
    ] = None,
    runtime_version: Annotated[
        str | None, typer.Option(help="Version of the runtime. Default: the newest that mixprec knows.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Tune scales and norms at the end: same size, lower KL.")
    ] = False,
    recipe_only: Annotated[
        bool, typer.Option("--recipe-only", help="Write the recipe to the folder and stop: no weights are loaded.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    base_model: BaseModel = None,
) -> None:
    """Quantize a model to a budget, so that a runtime loads it: one command, no YAML.

    It calibrates, predicts what each module costs in each format that the runtime
    loads, plans within the budget, compresses, compares with the original, and
    writes checkpoint, model card and report. A killed run continues.

    All of it is one recipe: the command prints it and leaves it in the folder.
    """
    from mixprec.api.runs import quantize_recipe, run
    from mixprec.core import artifacts
    from mixprec.models.model import Model
    from mixprec.pipeline.quantize import text_of
    from mixprec.report.formatting import size

    with as_options("bits", "file_mb", "runtime", "protect", "method", "runtime_device", "runtime_version"):
        chosen = quantize_recipe(
            Model(model, revision=revision, dtype=dtype, device=device),
            bits,
            runtime.value,
            file_mb=file_mb,
            protect=protect or (),
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
    words = text_of(chosen, to)
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()
    if recipe_only:
        artifacts.write_text(to / "recipe.yaml", words)
        out.print(f"{to / 'recipe.yaml'}: run it with the command in its first line", soft_wrap=True)
        return
    found = run(chosen, to)
    checkpoint = found.checkpoint("quantized")
    out.print(found)
    out.print()
    out.print(f"{checkpoint.folder}: {checkpoint.format}, {size(checkpoint.bytes)}", style="bold", soft_wrap=True)
    out.print(f"{found.report}, {to / 'recipe.yaml'}", soft_wrap=True)
