"""Verbs on checkpoints: compress, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixprec.cli.base import BaseModel, Device, Dtype, Revision, SpanRule, app, calibrated, epilog, model_in, out
from mixprec.core import processes


@app.command(
    epilog=epilog(
        "mixprec compress plan.json --out checkpoint",
        "mixprec compress plan.json --format compressed-tensors --out checkpoint",
        "mixprec compress plan.json --text wiki.valid.raw --samples 32 --tune --out checkpoint",
        "mixprec compress plan.json --traces bundled:attribution --samples 16 --model ./my-copy --out checkpoint",
        "mixprec compress plan.json --traces bundled:attribution --samples 16 --guided fisher --out checkpoint",
        "torchrun --nproc-per-node 2 -m mixprec compress plan.json --text wiki.valid.raw --device cuda --out made",
    )
)
def compress(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json, from 'mixprec plan'.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint.")],
    model: Annotated[str | None, typer.Option(help="Where the model lies; default: the plan's.")] = None,
    revision: Revision = None,
    text: Annotated[str | None, typer.Option(help="Calibration: a text file.")] = None,
    traces: Annotated[str | None, typer.Option(help="Calibration: traces, or bundled:attribution.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration: samples in all.")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="Calibration: tokens of each sample.")] = 512,
    seed: Annotated[int, typer.Option(help="Calibration: draws the samples.")] = 0,
    damping: Annotated[float | None, typer.Option(help="gptq, gptaq, sparsegpt: of the Hessian; default 0.03.")] = None,
    act_order: Annotated[bool, typer.Option(help="gptq, gptaq: columns of large inputs first.")] = True,
    guided: Annotated[
        str | None,
        typer.Option(help="gptq, gptaq, sparsegpt: weigh tokens by the gradients of a loss: fisher or loss."),
    ] = None,
    guided_groups: Annotated[
        int | None, typer.Option(min=1, help="With --guided: groups of a linear's outputs; default 1.")
    ] = None,
    products: Annotated[
        str, typer.Option(help="Type in which blocks multiply: model, or bfloat16, which newer processors do faster.")
    ] = "model",
    tune_blocks: Annotated[
        int, typer.Option(min=0, metavar="STEPS", help="Tune each block by its output, in so many steps, such as 30.")
    ] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    format: Annotated[str, typer.Option(help="dense, compressed-tensors, gptq or gguf.")] = "dense",
    base_model: BaseModel = None,
    memory_gb: Annotated[
        float, typer.Option(min=0.001, help="Calibration: 10^9 bytes of its states in memory; more go to the disk.")
    ] = 4.0,
    tune: Annotated[bool, typer.Option("--tune", help="Tune scales and norms afterwards.")] = False,
    validation: Annotated[int, typer.Option(min=2, help="With --tune: further samples, to decide when to stop.")] = 8,
    repository: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload it afterwards.")
    ] = None,
) -> None:
    """Compress a model as a plan says; writes a checkpoint that runtimes load.

    A killed run continues with the first block that is missing. Under torchrun processes share samples and solves.
    """
    from mixprec.api.arguments import checked
    from mixprec.api.make import compress as function
    from mixprec.checkpoint import hub
    from mixprec.compress.options import SolveOptions
    from mixprec.core.errors import UserError
    from mixprec.core.float64 import check_float64
    from mixprec.models.model import Model
    from mixprec.plan.methods import solving
    from mixprec.results.plan import Plan
    from mixprec.tune.blockoptions import TuneBlocks
    from mixprec.tune.options import TuneOptions

    check_float64(device, "compress")  # before calibration, which takes long
    opened = Model(model or model_in(plan_file), revision=revision, dtype=dtype, device=processes.join(device))
    plan = Plan.load(opened, plan_file)
    given: dict[str, Any] = {"damping": damping} if damping is not None else {}
    if guided is not None:
        given["guided"] = {"loss": guided} | ({} if guided_groups is None else {"groups": guided_groups})
    elif guided_groups is not None:
        raise UserError("--guided-groups: groups of what? add --guided fisher, or leave it out")
    options = checked(SolveOptions, "compress", act_order=act_order, products=products, **given)
    calibration = held_out = None
    if text or traces:
        solves = bool(solving(plan.content.methods))
        sources = {"text": text, "traces": traces, "tokens": tokens, "seed": seed}
        with processes.main_first():
            calibration = calibrated(opened, samples=samples, solves=solves, **sources)
        if tune:
            held_out = calibrated(opened, samples=validation, skip=samples, solves=False, **sources)
    elif tune:
        raise UserError("compress: --tune needs samples; give --text FILE or --traces bundled:attribution")
    made = function(
        opened,
        plan,
        to,
        calibration=calibration,
        options=options,
        format=format,
        base_model=base_model,
        memory_gb=memory_gb,
        tune_blocks=TuneBlocks(steps=tune_blocks) if tune_blocks else None,
        tune=TuneOptions() if tune else None,
        validation=held_out,
    )
    processes.leave()
    if not processes.is_main():
        return
    if repository:
        out.print(hub.push(to, repository), soft_wrap=True)
    out.print(made)


@app.command(
    epilog=epilog(
        "mixprec evaluate checkpoint --reference smollm2-135m-instruct --traces bundled:held_out",
        "mixprec evaluate checkpoint --reference ./original --text wiki.test.raw --out result.json",
        "mixprec evaluate ./original --text wiki.test.raw --save-reference original.safetensors",
        "mixprec evaluate checkpoint --reference original.safetensors --text wiki.test.raw",
    )
)
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="The model to evaluate.")],
    reference: Annotated[
        str, typer.Option(help="The original model, or its predictions (a .safetensors of --save-reference).")
    ] = "smollm2-135m-instruct",
    traces: Annotated[str | None, typer.Option(help="Annotated traces, or bundled:held_out.")] = None,
    preset: SpanRule = "paper",
    text: Annotated[str | None, typer.Option(help="Text file, or bundled:held_out.")] = None,
    text_tokens: Annotated[int, typer.Option(min=2)] = 512,
    to: Annotated[Path | None, typer.Option("--out", help="result.json; default: the terminal only.")] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Compare nothing: write this model's predictions, to compare others with.")
    ] = None,
    kept: Annotated[int, typer.Option(min=1, help="With --save-reference: tokens kept at each position.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model to evaluate.")] = None,
    reference_revision: Annotated[str | None, typer.Option(help="Hub revision of the original.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Compare a compressed model with its original: perplexity, KL, agreement, per behaviour too."""
    from mixprec.api.judge import evaluate as function
    from mixprec.api.judge import save_reference as save
    from mixprec.models.model import Model

    opened = Model(checkpoint, revision=revision, dtype=dtype, device=device)
    on: dict[str, Any] = {"traces": traces, "text": text, "text_tokens": text_tokens, "preset": preset}
    if save_reference:
        found = save(opened, save_reference, kept=kept, **on)
        size = save_reference.stat().st_size / 1e6
        out.print(f"{save_reference}: {len(found.all)} passages, {kept} tokens kept at each position, {size:.1f} MB")
        return
    original: Model | str = reference
    if not reference.endswith(".safetensors"):
        original = Model(reference, revision=reference_revision, dtype=dtype, device=device)
    result = function(opened, original, **on)
    if to:
        result.save(to)
    out.print(result)
