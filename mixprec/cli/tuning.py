"""The verb on packed checkpoints that tunes them: tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixprec.cli.base import BaseModel, app, calibrated, epilog, out


@app.command(
    epilog=epilog(
        "mixprec tune checkpoint --traces bundled:attribution --samples 16 --out tuned",
        "mixprec tune theirs-w3 --reference org/name --text wiki.valid.raw --samples 128 --validation 16 --out tuned",
        "accelerate launch --num-processes 4 -m mixprec tune theirs-w3 --reference org/name --device cuda "
        "--text wiki.valid.raw --batch 4 --out tuned",
    )
)
def tune(
    checkpoint: Annotated[str, typer.Argument(help="A packed checkpoint (compressed-tensors, gptq), whoever made it.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the tuned checkpoint.")],
    reference: Annotated[str, typer.Option(help="The original model that it was made of.")] = "smollm2-135m-instruct",
    text: Annotated[str | None, typer.Option(help="Samples: a text file.")] = None,
    traces: Annotated[str | None, typer.Option(help="Samples: traces, or bundled:attribution.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples that it is tuned on.")] = 128,
    validation: Annotated[int, typer.Option(min=2, help="Further samples, which decide when to stop.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each sample.")] = 512,
    seed: Annotated[int, typer.Option(help="Draws the samples, and their order.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="How often each sample is seen.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 1,
    rate: Annotated[float, typer.Option(help="Step of scales, relative to their size.")] = 2e-3,
    norms: Annotated[bool, typer.Option(help="Tune norms too.")] = True,
    biases: Annotated[bool, typer.Option(help="Tune biases too.")] = False,
    dtype: Annotated[str, typer.Option(help="Type to compute in: float32, bfloat16, float16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    base_model: BaseModel = None,
) -> None:
    """Tune a packed checkpoint's scales and norms by what its original predicts: same codes, same bytes, lower KL.

    A killed run continues. Where nothing is gained on the validation samples, nothing is written (exit code 2).
    """
    from mixprec.api.arguments import checked
    from mixprec.api.tuning import tune as function
    from mixprec.core import processes
    from mixprec.core.errors import UserError
    from mixprec.models.model import Model
    from mixprec.tune.options import TuneOptions

    if not text and not traces:
        raise UserError("tune: no samples; give --text FILE or --traces bundled:attribution")
    given = {"epochs": epochs, "batch": batch, "rate": rate, "norms": norms, "biases": biases}
    options = checked(TuneOptions, "tune", **given, dtype=dtype, seed=seed)
    original = Model(reference, device=processes.join(device))
    sources = {"text": text, "traces": traces, "tokens": tokens, "seed": seed, "solves": False}
    try:
        made = function(
            checkpoint,
            original,
            to,
            calibration=calibrated(original, samples=samples, **sources),
            validation=calibrated(original, samples=validation, skip=samples, **sources),
            options=options,
            base_model=base_model,
        )
    finally:
        processes.leave()
    if processes.is_main():
        out.print(made)
