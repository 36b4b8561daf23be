"""Tuning of a whole model: what it is tuned on, what may move, and whether something was gained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mixprec.calibration.data import Calibration
from mixprec.core import devices, publish
from mixprec.core.errors import UserError
from mixprec.core.progress import bar, console
from mixprec.models.decoder import Decoder
from mixprec.models.model import Model
from mixprec.models.weights import blocks_of, map_in
from mixprec.tune import RULES
from mixprec.tune.distil import Course, Distillation, Sample
from mixprec.tune.masters import Kind
from mixprec.tune.options import TuneOptions
from mixprec.tune.student import Plain, Student
from mixprec.tune.teacher import Teacher
from mixprec.walk.options import MEMORY_GB, numbers_inside
from mixprec.walk.states import States

#: What may move, by the options' names.
KINDS: Final[tuple[Kind, ...]] = ("scales", "zeros", "norms", "biases")
#: Where a killed run is continued from.
_STATE: Final = "tuning.safetensors"


@dataclass(frozen=True, eq=False)
class Lessons:
    """What is tuned on and what decides when to stop: ``training`` and ``validation`` samples, which differ.

    Weights of tokens count in both. Raises UserError where a sample is in both, or no token of it counts that is
    predicted.
    """

    training: Calibration
    validation: Calibration

    def __post_init__(self) -> None:
        seen = {tuple(row) for row in self.training.tokens.tolist()}
        if any(tuple(row) in seen for row in self.validation.tokens.tolist()):
            raise UserError(
                "tune: a validation sample is among those that are tuned on, and would say nothing; draw others "
                "(skip in mixprec.calibrate)"
            )
        for calibration in (self.training, self.validation):
            if calibration.weights is not None and not bool((calibration.weights[:, 1:] > 0).any(1).all()):
                raise UserError(
                    "tune: in a sample no token counts behind the first one, so that it says nothing; give others more "
                    "than 0 in the calibration's sources, or draw with another seed"
                )

    @property
    def digest(self) -> list[str]:
        """Fingerprints of both."""
        return [self.training.digest, self.validation.digest]

    @property
    def tokens(self) -> list[Tensor]:
        """All samples, those for training first."""
        return [*self.training.tokens, *self.validation.tokens]


def samples_of(calibration: Calibration) -> list[Sample]:
    """Samples with what each predicted token counts."""
    weights = torch.ones(calibration.tokens.shape) if calibration.weights is None else calibration.weights.float()
    return [Sample(tokens, counts[1:]) for tokens, counts in zip(calibration.tokens, weights, strict=True)]


class Tuning:
    """Tunes a compressed model by what its original predicts; ``course`` says afterwards what happened.

    ``solved_on``: the samples that modules were solved on, which can't be for validation. ``memory_gb``: 10^9 bytes of
    the original's states in memory, more of them go to the disk; and as many for what samples leave inside blocks,
    which run twice where that is not enough.
    """

    def __init__(
        self,
        lessons: Lessons,
        options: TuneOptions = TuneOptions(),
        *,
        solved_on: Calibration | None = None,
        memory_gb: float = MEMORY_GB,
    ) -> None:
        if solved_on is not None:
            Lessons(solved_on, lessons.validation)
        self.lessons, self.options, self._memory = lessons, options, int(memory_gb * 1e9)
        self.course: Course | None = None

    @property
    def described(self) -> dict[str, Any]:
        """What decides the outcome besides what was solved: for fingerprints and cards."""
        return {"rules": RULES, "samples": self.lessons.digest, **self.options.model_dump()}

    def computed(self, model: Model) -> Model:
        """The model in the type that is tuned in, with weights of its own: whoever holds ``model``'s keeps them."""
        dtype = self.options.dtype
        found = model.computed(dtype=devices.quickest_dtype(model.device) if dtype == "auto" else dtype)
        return copy.copy(found)

    @property
    def kinds(self) -> frozenset[Kind]:
        """What may move."""
        return frozenset(kind for kind in KINDS if getattr(self.options, kind))

    @contextmanager
    def teacher(self, original: Model, folder: Path) -> Iterator[Teacher]:
        """What the original predicts on all samples; it stays loaded. Beyond memory its states lie in ``folder``."""
        with publish.scratch(folder / "states") as spilled:
            yield Teacher(original.load(), self.lessons.tokens, States(self._memory, spilled))

    def run(self, student: Student, teacher: Teacher, folder: Path, stamp: str) -> bool:
        """Whether something was gained: then the student ends with its best numbers. A killed run of the same ``stamp``
        continues from what lies in ``folder``.

        Raises UserError where there is nothing to tune, and where the loss stays NaN or infinite.
        """
        if not student.masters:
            raise UserError(
                f"tune: no module is in a format with {', '.join(sorted(self.kinds))} to tune; compress some, or leave "
                "out tune"
            )
        if self._crowded(student.model):
            recompute(student.model)
        training, validation = samples_of(self.lessons.training), samples_of(self.lessons.validation)
        work = Distillation(student, teacher, training, validation, self.options, folder / _STATE, stamp)
        with bar("tune", work.steps, "steps") as advance:
            self.course = work.run(advance)
        step, kl = self.course.best
        told = f"tune: KL on {len(validation)} validation samples {self.course.before:.4f}"
        if step == 0:
            console.print(f"{told}: nothing was gained; the model stays as it was solved", soft_wrap=True)
        else:
            console.print(f"{told} -> {kl:.4f} after {step} of {work.steps} steps", soft_wrap=True)
        return step > 0

    def _crowded(self, model: Any) -> bool:
        """Whether what a step's samples leave in all blocks is more than the memory for it."""
        tokens = self.lessons.training.tokens.shape[1] * self.options.batch
        numbers = numbers_inside(map_in(model).sizes) * len(blocks_of(model))
        return bool(tokens * numbers * model.dtype.itemsize > self._memory)


def recompute(model: Any) -> None:
    """Let the blocks of a loaded model keep their inputs alone for the backward pass, which runs them once more."""
    for block in blocks_of(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def plain_of(decoder: Decoder, read: Callable[[str], Tensor]) -> dict[str, Plain]:
    """Norms and biases by their names, as ``read`` has them."""
    norms = {
        f"{block.prefix}{norm}.weight" for block in decoder.blocks for norm in (*block.norms, *block.head_norms)
    } | {f"{decoder.norm}.weight"}
    kinds: dict[str, Kind] = {
        name: "norms" if name in norms else "biases"
        for name in decoder.other
        if name in norms or name.endswith(".bias")
    }
    return {name: Plain(read(name), kind) for name, kind in kinds.items()}
