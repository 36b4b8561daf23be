"""The verb that trains a student on a teacher's traces: distill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixprec.cli.base import BaseModel, Device, Revision, app, epilog, out


@app.command(
    epilog=epilog(
        "mixprec distill smollm2-135m-instruct --traces traces.jsonl --out distilled",
        "mixprec distill Qwen/Qwen3-0.6B --traces r1.jsonl --chat-template --lora 16 --device cuda --out distilled",
        "mixprec distill org/small --traces traces.jsonl --teacher org/large --device cuda --out distilled",
        "accelerate launch --num-processes 4 -m mixprec distill org/small --traces r1.jsonl --packing --tokens 8192 "
        "--batch 32 --device cuda --out distilled",
    )
)
def distill(
    student: Annotated[str, typer.Argument(help="Bundled name, hub id or folder of the model that learns.")],
    traces: Annotated[str, typer.Option(help="What a teacher wrote: JSON lines with id, prompt and output.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the trained checkpoint.")],
    teacher: Annotated[
        str | None, typer.Option(help="Learn this model's predictions, not the text alone; of the same tokenizer.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put prompts into the student's own template.")
    ] = False,
    validation: Annotated[int, typer.Option(min=1, help="Traces held out, which decide what is kept.")] = 16,
    tokens: Annotated[int | None, typer.Option(min=2, help="Most tokens of a trace; default: the context.")] = None,
    longer: Annotated[str, typer.Option(help="Longer traces: refuse, cut or drop.")] = "refuse",
    packing: Annotated[bool, typer.Option("--packing", help="Several traces in a row of --tokens.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="How often each trace is seen.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step, on all processes together.")] = 8,
    at_once: Annotated[int, typer.Option(min=1, help="Rows that go through a device at once.")] = 1,
    rate: Annotated[float | None, typer.Option(help="Learning rate; default 2e-5, with --lora 2e-4.")] = None,
    lora: Annotated[int, typer.Option(min=0, help="Rank of adapters; 0: all weights are trained.")] = 0,
    lora_alpha: Annotated[float | None, typer.Option(help="Of the adapters; default twice the rank.")] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations twice in place of keeping them.")
    ] = False,
    checks: Annotated[int, typer.Option(min=1, help="Measurements on validation in an epoch.")] = 2,
    patience: Annotated[int, typer.Option(min=1, help="Measurements without a gain after which it ends.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws the validation traces and the order.")] = 0,
    revision: Revision = None,
    dtype: Annotated[str, typer.Option(help="Type to compute in: auto, bfloat16, float32.")] = "auto",
    device: Device = "cpu",
    base_model: BaseModel = None,
) -> None:
    """Train a student on a teacher's traces; writes a checkpoint. Needs the extra 'distill' (TRL, peft).

    Only what the teacher wrote counts. A killed run continues. Where nothing is gained on validation, nothing is
    written (exit code 2).
    """
    from mixprec.api.arguments import checked
    from mixprec.api.distilling import distill as function
    from mixprec.core import processes
    from mixprec.distill.options import DistillOptions
    from mixprec.models.model import Model

    options = checked(
        DistillOptions,
        "distill",
        chat_template=chat_template,
        validation=validation,
        tokens=tokens,
        longer=longer,
        packing=packing,
        epochs=epochs,
        batch=batch,
        at_once=at_once,
        rate=rate,
        lora=lora,
        lora_alpha=lora_alpha,
        recompute=recompute,
        checks=checks,
        patience=patience,
        dtype=dtype,
        seed=seed,
    )
    where = processes.join(device)
    try:
        made = function(
            Model(student, revision=revision, device=where),
            traces,
            to,
            teacher=None if teacher is None else Model(teacher, device=where),
            options=options,
            base_model=base_model,
        )
    finally:
        processes.leave()
    if processes.is_main():
        out.print(made)
