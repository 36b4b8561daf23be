"""TRL's SFTTrainer for lessons: labels, steps, checkpoints to go on from and several GPUs are its own.

Ours are the tokens and labels, what is measured on validation, when, and the loss by a teacher's predictions.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
import peft
import torch
import trl
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mixprec.core import devices, processes, publish, upstream
from mixprec.core.errors import UserError, from_disk
from mixprec.distill.course import Clock, Course
from mixprec.distill.lessons import IGNORED, Lesson, Lessons
from mixprec.distill.options import DistillOptions
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.weights import body_of
from mixprec.numerics import divergence
from mixprec.numerics.divergence import CHUNK

#: In a checkpoint that was written whole.
_WHOLE: Final = "whole"
#: TRL's own loss and the teacher's, by what Course calls them.
TEXT, PREDICTIONS = "cross-entropy", "KL(teacher ‖ student)"


class _Trainer(trl.SFTTrainer):  # type: ignore[misc]
    """``lessons``: for validation. ``teacher``: whose predictions are learned, else the text is."""

    control: Any

    def __init__(
        self, student: LoadedModel, teacher: LoadedModel | None, lessons: Sequence[Lesson], **options: Any
    ) -> None:
        self._student, self._lessons, self._teacher = student.model, lessons, None
        self._head: divergence.Head = Head.of(student.model)
        if teacher is not None:
            # Runtimes pad embeddings, so that models of one tokenizer may differ in rows that no token has.
            theirs = Head.of(teacher.model)
            both = (theirs, Head.of(student.model))
            words = min(int(head.projection.get_parameter("weight").shape[0]) for head in both)
            self._teacher, self._teachers = teacher.model, _first(theirs, words)
            self._head = _first(both[1], words)
            self._words = words
        super().__init__(student.model, **options)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of the step's tokens that count; a part of it where a step has several parts."""
        if self._teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given = {key: value for key, value in inputs.items() if key != "labels"} | {"use_cache": False}
        counted = inputs["labels"][:, 1:] != IGNORED
        own = model(**given).logits[:, :-1][counted]
        with torch.no_grad():
            original = body_of(self._teacher)(**given).last_hidden_state[:, :-1][counted]
        total = own.new_zeros((), dtype=torch.float32)
        for start in range(0, len(own), CHUNK):
            where = slice(start, start + CHUNK)
            with torch.no_grad():
                log_p = self._teachers(original[where]).float().log_softmax(-1)
            log_q = own[where, : self._words].float().log_softmax(-1)
            total = total + divergence.relative_entropy(log_p, log_q).sum()
        # The trainer counts the tokens of all parts and processes, whose gradients it averages.
        every = counted.sum() if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        return total / every

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss of all validation tokens that count, which decides what is kept."""
        found = {"eval_loss": self.measured()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    @torch.no_grad()
    def measured(self) -> float:
        """Mean loss per validation token that the teacher wrote. Raises UserError where it is NaN or infinite."""
        training = self.model.training
        self.model.eval()
        mine = self._lessons[processes.rank() :: processes.count()]
        total = processes.add_up([], sum(float(self._losses(lesson).sum()) for lesson in mine))
        self.model.train(training)
        found = total / sum(lesson.written for lesson in self._lessons)
        if not math.isfinite(found):
            raise UserError(
                "distill: the loss on validation is NaN or infinite; lower --rate, or compute in float32 (--dtype)"
            )
        return found

    def _losses(self, lesson: Lesson) -> Tensor:
        """(n,) float64: the loss of each token that the teacher wrote."""
        where = self.args.device
        tokens, labels = (torch.tensor(each, device=where) for each in (lesson.tokens, lesson.labels))
        counted = labels[1:] != IGNORED
        with self.compute_loss_context_manager():
            own = _states(self._student, tokens)[counted]
            if self._teacher is not None:
                original = _states(self._teacher, tokens)[counted]
                return divergence.divergence(own, self._head, original, self._teachers)
            found = divergence.log_probabilities(own, self._head)
            return torch.cat([divergence.likelihood(logs, labels[1:][counted][at]) for at, logs in found])


def _states(model: Any, tokens: Tensor) -> Tensor:
    """(T - 1, hidden) behind the last norm, of all ``tokens`` (T,) but the last, which predicts nothing here."""
    found: Tensor = body_of(model)(input_ids=tokens[None], use_cache=False).last_hidden_state[0, :-1]
    return found


def _first(head: Head, words: int) -> divergence.Head:
    """The logits of the first ``words`` tokens."""
    return lambda hidden: head(hidden)[..., :words]


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells of steps, says when to measure, and marks checkpoints that are whole."""

    def __init__(self, advance: Callable[[int], None], is_check: Callable[[int], bool], clock: Clock) -> None:
        self._advance, self._is_check, self._clock, self._tokens = advance, is_check, clock, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._clock.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_log = True
        control.should_evaluate = control.should_save = self._is_check(state.global_step)
        now = int(state.num_input_tokens_seen)
        self._clock.end(now - self._tokens)
        self._tokens = now
        self._advance(1)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if processes.is_main():
            (Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / _WHOLE).touch()


class Training:
    """Trains ``student``, whose weights are in float32, in place; ``folder`` holds what a killed run goes on from."""

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel | None,
        lessons: Lessons,
        options: DistillOptions,
        folder: Path,
        device: str,
    ) -> None:
        """Raises UserError where a step's rows can't be shared between processes."""
        self._student, self._options, self._folder = student, options, folder
        self.clock = Clock()
        self.course = Course(TEXT if teacher is None else PREDICTIONS)
        with _settled():
            self._trainer = _Trainer(
                student,
                teacher,
                lessons.validation,
                args=_arguments(options, folder, device, max(len(one.tokens) for one in lessons.training)),
                train_dataset=_rows(lessons.training),
                eval_dataset=_rows(lessons.validation),
                processing_class=copy.deepcopy(student.tokenizer),  # it gets a token for padding
                peft_config=_adapters(options),
                callbacks=[EarlyStoppingCallback(options.patience)],
            )
        self._trainer.remove_callback(PrinterCallback)
        self.rows = len(self._trainer.train_dataset)
        self._per_epoch = math.ceil(self.rows / options.batch)
        self.course.steps = self._per_epoch * options.epochs

    def run(self, advance: Callable[[int], None]) -> Course:
        """All steps, or those up to the end of patience; the student ends with its best weights, adapters within.

        Raises UserError where the disk is full.
        """
        before = self._trainer.measured()
        self._trainer.add_callback(_Watch(advance, self._is_check, self.clock))
        try:
            with _settled():
                self._trainer.train(resume_from_checkpoint=self._last())
        except RuntimeError as problem:  # torch.save says nothing else of a full disk
            raise (from_disk(problem, self._folder) or problem) from None
        history = self._trainer.state.log_history
        self.course.validation = [(0, before), *_curve(history, "eval_loss")]
        self.course.training = _curve(history, "loss")
        if self._options.lora:
            self._student_is(self._trainer.accelerator.unwrap_model(self._trainer.model).merge_and_unload())
        return self.course

    def written(self, dtypes: dict[str, torch.dtype]) -> dict[str, Tensor]:
        """The student's tensors in the types of ``dtypes``, on the CPU; it computes with these values from now on.

        Raises UserError for a tensor that isn't there, or isn't finite in its type.
        """
        state = self._student.model.state_dict()
        found = {}
        for name, dtype in dtypes.items():
            if name not in state:
                raise UserError(f"distill: {name} of the student's checkpoint is not in the model; it can't be written")
            rounded = state[name].to(dtype)
            if not torch.isfinite(rounded).all():
                raise UserError(f"distill: {name} is NaN, infinite or too large for {dtype}; lower --rate")
            state[name].copy_(rounded)
            found[name] = rounded.cpu()
        self.course.written = self._trainer.measured()
        return found

    def _student_is(self, merged: Any) -> None:
        assert merged is self._student.model  # adapters were put into it, and went

    def _is_check(self, step: int) -> bool:
        """Whether validation follows ``step``, from 1: evenly over an epoch, and at the end."""
        checks, at = self._options.checks, step % self._per_epoch or self._per_epoch
        even = at * checks // self._per_epoch > (at - 1) * checks // self._per_epoch
        return even or step == self.course.steps

    def _last(self) -> str | None:
        """The latest checkpoint that is whole; what a kill left half goes."""
        steps = {int(path.name.rpartition("-")[2]): path for path in self._folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
        for step in [step for step, path in steps.items() if not (path / _WHOLE).exists()]:
            if processes.is_main():
                publish.remove(steps[step])
            del steps[step]
        processes.wait()
        return str(steps[max(steps)]) if steps else None


def _rows(lessons: Sequence[Lesson]) -> Any:
    return datasets.Dataset.from_list([{"input_ids": one.tokens, "labels": one.labels} for one in lessons])


def _curve(history: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]


def _adapters(options: DistillOptions) -> Any:
    if not options.lora:
        return None
    alpha = options.lora_alpha or 2 * options.lora
    return peft.LoraConfig(
        r=options.lora, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _arguments(options: DistillOptions, folder: Path, device: str, longest: int) -> Any:
    """The trainer's arguments. Raises UserError for a step that can't be shared evenly."""
    count = processes.count()
    if options.batch % (options.at_once * count):
        raise UserError(
            f"distill: a step of {options.batch} rows can't be shared: {options.at_once} at once on {count} processes; "
            f"give a --batch that {options.at_once * count} divides"
        )
    dtype = devices.quickest_dtype(device) if options.dtype == "auto" else options.dtype
    made = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=options.at_once,
        gradient_accumulation_steps=options.batch // (options.at_once * count),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warm_up,
        weight_decay=options.decay,
        max_length=(options.tokens or longest) if options.packing else None,
        packing=options.packing,
        eval_packing=False,
        gradient_checkpointing=options.recompute,
        # _Watch says when; these only have to agree.
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=10**9,
        save_steps=10**9,
        logging_steps=10**9,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        include_num_input_tokens_seen="non_padding",
        router_aux_loss_coef=0.0,
        seed=options.seed,
        data_seed=options.seed,
        bf16=dtype == "bfloat16",
        use_cpu=device == "cpu",
        dataloader_pin_memory=device.startswith("cuda"),
        disable_tqdm=True,
        report_to="none",
    )
    # Without a launcher one GPU works; TRL refuses to spread a model over threads.
    made._n_gpu = min(made.n_gpu, 1)
    return made


@contextmanager
def _settled() -> Iterator[None]:
    """The libraries' own bars and notices stay away, and their seeds don't outlive their work."""
    bars, states = datasets.is_progress_bar_enabled(), (random.getstate(), np.random.get_state())  # noqa: NPY002
    datasets.disable_progress_bars()
    try:
        with upstream.quiet(), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # keys that TRL itself still sets
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
