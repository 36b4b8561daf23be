"""Distillation from end to end: checks, lessons, training, and a checkpoint of what was learned."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from mixprec.checkpoint import modelcard
from mixprec.checkpoint.integrity import card_of, verify
from mixprec.checkpoint.target import blocks_folder, check_space, check_target
from mixprec.core import artifacts, devices, locks, processes, publish
from mixprec.core.errors import UserError
from mixprec.core.progress import bar, console
from mixprec.distill import RULES, lessons, publishing
from mixprec.distill.course import Course
from mixprec.distill.lessons import Lessons
from mixprec.distill.options import DistillOptions
from mixprec.evaluate.engines import templates
from mixprec.models.maps import names_of
from mixprec.models.model import Model
from mixprec.traces import store

INSTALL: Final = "pip install 'mixprec[distill]'"
_PACKAGES: Final = ("trl", "peft", "datasets")
_STAMP: Final = "stamp.json"


@dataclass(frozen=True)
class Prepared:
    """What is known before any work: the student and its teacher as they are computed, what is learned from, and where
    the result goes. ``described``: all that it depends on."""

    student: Model
    teacher: Model | None
    lessons: Lessons
    options: DistillOptions
    out: Path
    base_model: str | None
    described: dict[str, Any]

    @property
    def stamp(self) -> str:
        """The fingerprint of the result."""
        return artifacts.fingerprint(self.described)


@dataclass(frozen=True)
class Distilled:
    """``told``: what mixprec.json says of it. ``speed``: training tokens per second of this call on this process; None
    where no step was left to make."""

    folder: Path
    told: dict[str, Any]
    speed: float | None = None


def require() -> None:
    """Raises UserError where a package of the extra is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"distill: {', '.join(missing)} not installed; run: {INSTALL}")


def distill(ready: Prepared) -> Distilled:
    """Train a student and write its checkpoint; a killed call goes on.

    What is kept is the best on the validation traces. Raises UserError where nothing was gained: then nothing is
    written.
    """
    out, work = ready.out, blocks_folder(ready.out)
    with locks.target(out, work) if processes.is_main() else nullcontext():
        if processes.agree(_is_made(out, ready.stamp)):
            console.print(f"{out}: is made already", soft_wrap=True)
            if processes.is_main():
                publish.remove(work)  # a kill behind the checkpoint's last byte leaves it
            return Distilled(out, card_of(out)["distillation"])
        return _made(ready)


def prepare(
    student: Model,
    traces: str,
    out: Path,
    options: DistillOptions = DistillOptions(),
    *,
    teacher: Model | None = None,
    base_model: str | None = None,
) -> Prepared:
    """All that can be looked at before ``student`` is trained on the ``traces`` of a teacher into the checkpoint
    ``out``: with a ``teacher`` of the same tokenizer its predictions will be learned (KL), else the traces' text.

    ``base_model``: the student's id on the hub, for the card.

    Raises UserError where a package is missing, for a student that is quantized or a mixture of experts, one without
    the chat template that is asked for, a teacher of another tokenizer, traces that are too long, and a target that
    mixprec did not make.
    """
    out = Path(os.path.realpath(out))  # a link to a folder elsewhere stays
    require()
    device = _device(student)
    student = student.computed(dtype="float32", device=device)  # steps are too small for 16 bits
    _check(student, out, options, base_model)
    teacher = _checked(teacher, student, options)
    context = min(model.context for model in (student, teacher) if model is not None)
    if options.tokens is not None and options.tokens > context:
        raise UserError(f"distill: --tokens {options.tokens} is more than the models' context of {context}")
    drawn = lessons.draw(store.load(traces), student.encoder, options, options.tokens or context)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    described = {
        "rules": RULES,
        "student": student.origin | {"identity": student.identity},
        "teacher": None if teacher is None else teacher.origin | {"identity": teacher.identity},
        "lessons": drawn.digest,
        "options": options.model_dump(),
        "learning_rate": options.learning_rate,
        "packages": versions,
    }
    return Prepared(student, teacher, drawn, options, out, base_model, described)


class _Trained(NamedTuple):
    """``tensors``: as they are written; ``rows``: that were trained on; ``speed``: tokens per second."""

    tensors: dict[str, Tensor]
    course: Course
    rows: int
    speed: float | None


def _made(ready: Prepared) -> Distilled:
    student, drawn, out = ready.student, ready.lessons, ready.out
    opened, work = student.original, blocks_folder(out)
    trained = _trained(ready, _folder(work, ready.stamp))
    # The trainer's parts refer to one another: with them the optimizer's state, three times the weights, would stay.
    gc.collect()
    course = trained.course
    said = ready.described | {"stamp": ready.stamp, "rows": trained.rows, "counts": drawn.told, "course": course.told}
    if processes.is_main():
        publishing.write(student, opened, trained.tensors, out, said, ready.base_model)
        publish.remove(work)
    processes.wait()
    return Distilled(out, said, trained.speed)


def _trained(ready: Prepared, folder: Path) -> _Trained:
    """Train, with states of training in ``folder``. Raises UserError where nothing was gained."""
    from mixprec.distill.trainer import Training  # it brings TRL

    student, teacher, drawn = ready.student, ready.teacher, ready.lessons
    options, out, opened = ready.options, ready.out, student.original
    loaded = student.load()
    loaded.model.requires_grad_(True)
    try:
        teaching = None if teacher is None else teacher.load()
        training = Training(loaded, teaching, drawn, options, folder, student.device)
        _say(drawn, options, training.rows)
        with bar("distill", training.course.steps, "steps") as advance:
            course = training.run(advance)
        step, after = course.best
        told = f"distill: {course.objective} on {len(drawn.validation)} validation traces {course.before:.4f}"
        if step == 0:
            raise UserError(
                f"{out}: not written: {told}, and not below after {course.validation[-1][0]} steps; try a lower --rate"
            )
        console.print(f"{told} -> {after:.4f} after {step} of {course.steps} steps", soft_wrap=True)
        tensors = training.written(publishing.dtypes(opened))
        return _Trained(tensors, course, training.rows, training.clock.speed)
    finally:
        student.release()  # its weights are no longer its own


def _device(student: Model) -> str:
    """The device by its kind: the trainer chooses among several. Raises UserError for one that it can't be told."""
    kind, _, number = student.device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and processes.count() == 1):
        raise UserError(f"device: {student.device}: write cpu, cuda or mps; CUDA_VISIBLE_DEVICES says which GPU")
    devices.check_device(student.device)
    return student.device


def _check(student: Model, out: Path, options: DistillOptions, base_model: str | None) -> None:
    """Raises UserError for what can be known of the student before any work."""
    opened = student.original
    if names_of(opened.shapes) is not None:
        raise UserError(
            f"model.id: {student.id}: its checkpoint stacks or renames tensors, as mixtures of experts do; such "
            "students are not trained here. Give a dense student"
        )
    modelcard.base_model(student.id, opened.path, base_model)
    check_target(out, opened.path)
    # The result twice; of all weights three states of training too, each with AdamW's two moments, in float32.
    tensors = opened.source.tensors.values()
    states = 0 if options.lora else 3 * 12 * sum(math.prod(info.shape) for info in tensors)
    check_space(out, 2 * sum(info.bytes for info in tensors) + states)
    if options.chat_template:
        templates.require(student, "--chat-template", "leave the option out, and prompts go in as they are")


def _checked(teacher: Model | None, student: Model, options: DistillOptions) -> Model | None:
    """The teacher as it is computed. Raises UserError for one of another tokenizer."""
    if teacher is None:
        return None
    if teacher.encoder.vocabulary != student.encoder.vocabulary:
        raise UserError(
            f"--teacher: {teacher.id} has another tokenizer than {student.id}, so that their predictions can't be "
            "compared; leave --teacher out: traces are text, and any student can learn from them"
        )
    return teacher.computed(device=student.device)


def _is_made(out: Path, stamp: str) -> bool:
    found = card_of(out).get("distillation") if out.is_dir() else None
    return isinstance(found, dict) and found.get("stamp") == stamp and verify(out)


def _folder(work: Path, stamp: str) -> Path:
    """Where the states of this training lie; those of another go."""
    marker = work / _STAMP
    if processes.is_main() and not (marker.is_file() and artifacts.read_json(marker) == {"stamp": stamp}):
        publish.remove(work)
        artifacts.write_json(marker, {"stamp": stamp})
    processes.wait()
    return work / "training"


def _say(drawn: Lessons, options: DistillOptions, rows: int) -> None:
    """What is learned from, and what of the file isn't."""
    told = drawn.told
    console.print(
        f"distill: {told['training_traces']} traces of {told['training_tokens']:,} tokens, of which the teacher wrote "
        f"{told['training_written']:,}; {told['validation_traces']} for validation",
        soft_wrap=True,
    )
    for key, words in lessons.COUNTED.items():
        if key != "traces" and drawn.counts[key]:
            console.print(f"distill: {drawn.counts[key]} {words}", soft_wrap=True)
    if options.packing:
        console.print(f"distill: packed into {rows} rows", soft_wrap=True)
