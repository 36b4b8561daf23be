"""Tuning between solving and packing: blocks' files in, blocks' files of the same layout out, with other numbers.

The original predicts all samples first; then what was made of it takes the place of its weights, so that one model is
in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixprec.checkpoint.base import Held
from mixprec.checkpoint.reader import Checkpoint
from mixprec.compress.blockfile import MADE, BlockFile, opened
from mixprec.compress.module import ModuleReport, relative_error
from mixprec.compress.solving import Solved
from mixprec.core import artifacts
from mixprec.models.decoder import Decoder
from mixprec.models.model import Model
from mixprec.models.tensors import COMPUTABLE
from mixprec.numerics import storage
from mixprec.numerics.storage import AnyQuantized
from mixprec.tune.student import Student
from mixprec.tune.tuning import Tuning, plain_of

#: Norms and biases that moved, beside the blocks' files.
_PLAIN = "plain.safetensors"


class SolvedTuning(Tuning):
    """Tunes what a walk made, as ``stream.compress`` asks for it."""

    def __call__(self, model: Model, files: Sequence[Path], folder: Path, stamp: str) -> list[Path]:
        """Files of ``folder`` in the place of the blocks' ``files``, which have this ``stamp``; these themselves where
        nothing was gained. ``model``: the original.

        Raises UserError as ``run`` does.
        """
        stamp = artifacts.fingerprint(stamp, self.described)
        original, checkpoint = self.computed(model), model.original
        try:
            with self.teacher(original, folder) as teacher:
                loaded = original.load().model
                held, other = _put(loaded, checkpoint.inventory, files)
                plain = plain_of(
                    checkpoint.inventory, lambda name: other[name] if name in other else checkpoint.tensor(name)
                )
                student = Student(loaded, held, plain, self.kinds)
                if not self.run(student, teacher, folder, stamp):
                    return list(files)
        finally:
            original.release()
        return _write(files, folder, stamp, student.quantized(), student.plain(), checkpoint)


@torch.no_grad()
def _put(model: torch.nn.Module, decoder: Decoder, files: Sequence[Path]) -> tuple[dict[str, Held], dict[str, Tensor]]:
    """Give a loaded model the values that its checkpoint will have, block by block.

    Name of a weight -> what it became; name -> another tensor that changed.
    """
    held: dict[str, Held] = {}
    other: dict[str, Tensor] = {}
    for path in files:
        with opened(path) as block:
            other |= block.other
            for address, made in block.modules.items():
                name = decoder[address].weight_name
                model.get_parameter(name).copy_(made.restored)
                held[name] = Held(made.quantized, made.format)
    for name, tensor in other.items():
        model.get_parameter(name).copy_(tensor)
    return held, other


def _write(
    files: Sequence[Path],
    folder: Path,
    stamp: str,
    quantized: Mapping[str, AnyQuantized],
    plain: Mapping[str, Tensor],
    original: Checkpoint,
) -> list[Path]:
    """The blocks' files with other numbers, and one with norms and biases."""
    found = []
    for path in files:
        file = BlockFile()
        with opened(path) as block:
            reports = {address: ModuleReport(**report) for address, report in block.reports.items()}
            for name, tensor in block.other.items():
                if name not in plain:
                    file.put(name, tensor)
            for address, made in block.modules.items():
                linear = original.inventory[address]
                kind = original.source.tensors[linear.weight_name].dtype
                now = quantized.get(linear.weight_name, made.quantized)
                restored = storage.dequantize(now, made.format, COMPUTABLE[kind])
                error = relative_error(original.tensor(linear.weight_name), restored)
                reports[address] = reports[address]._replace(relative_error=error, output_error=None)
                file.add_module(linear, kind, None)
                file.add(address, MADE, Solved(restored, now), made.format)
        found.append(folder / path.name)
        file.save(found[-1], stamp, {address: report._asdict() for address, report in reports.items()})
    if plain:
        file = BlockFile()
        for name, tensor in plain.items():
            file.put(name, tensor)
        found.append(folder / _PLAIN)
        file.save(found[-1], stamp, {})
    return found
