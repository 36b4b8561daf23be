"""Tuning of a packed checkpoint, whoever wrote it: the same codes, other scales and norms, in the same format."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from mixprec.checkpoint.convert import check_rewrite, rewrite
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.target import blocks_folder
from mixprec.core import artifacts, locks, processes
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.tune.student import Student
from mixprec.tune.tuning import Tuning, plain_of


def tune_packed(tuning: Tuning, model: Model, original: Model, out: Path, base_model: str | None = None) -> None:
    """Write ``model``, a packed checkpoint of ``original``, with tuned numbers into the folder ``out``.

    A killed call continues from what lies beside ``out``. ``base_model``: as in ``convert``.

    Raises UserError for a checkpoint that can't be written again, models that are not of one vocabulary or
    architecture, as ``Tuning.run`` does, and where nothing was gained: then nothing is written.
    """
    opened = model.checkpoint
    format = checkpoint_format(opened.container)
    if opened.container == "dense":
        raise UserError(
            f"{opened.path}: is written dense, without codes and scales; tune while it is compressed "
            "(compress.tune in a recipe), or write it packed"
        )
    check_rewrite(opened, format, out, base_model)
    _check_pair(model, original)
    out = Path(os.path.realpath(out))  # a link to a folder elsewhere stays
    folder = blocks_folder(out) / "tuned"
    teaching, taught = (tuning.computed(each) for each in (original, model))
    with locks.target(out, blocks_folder(out)) if processes.is_main() else nullcontext():
        stamp = artifacts.fingerprint(model.identity, original.identity, tuning.described)
        with tuning.teacher(teaching, folder) as teacher:
            teaching.release()
            packed = [each for each in opened.inventory.matrices if opened.layouts[each.address].container != "dense"]
            held = {module.weight_name: opened.held(module) for module in packed}
            try:
                student = Student(taught.load().model, held, plain_of(opened.inventory, opened.tensor), tuning.kinds)
                if not tuning.run(student, teacher, folder, stamp):
                    raise UserError(f"{out}: not written: tuning gained nothing on the validation samples")
            finally:
                taught.release()
        if processes.is_main():
            now, plain = student.quantized(), student.plain()
            rewrite(opened, format, out, quantized=now, other=plain, base_model=base_model, tune=tuning.described)


def _check_pair(model: Model, original: Model) -> None:
    """The original is quantized neither, and of the model's architecture and tokenizer. Raises UserError."""
    shapes, own = original.original.inventory.shapes, model.checkpoint.inventory.shapes
    if shapes != own:
        name = next((name for name in own if own[name] != shapes.get(name)), next(iter(shapes.keys() - own), ""))
        raise UserError(
            f"--reference: {original.id} is not what {model.id} was made of: {name} is {own.get(name)} there, "
            f"{shapes.get(name)} here"
        )
    if model.encoder.vocabulary != original.encoder.vocabulary:
        raise UserError(
            f"--reference: {original.id} has another tokenizer than {model.id}; give the model it was made of"
        )
