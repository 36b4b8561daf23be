"""Distillation of a compressed model: its numbers move so that it predicts what the original does.

The loss is KL(original ‖ compressed) over the whole vocabulary, a mean over predicted tokens by their weights. Steps
are relative: a rate of 0.002 moves a number by at most about 0.2% of its unit (numerics.tunable.Number). AdamW without
decay, a few steps of warm-up, then a cosine down to a twentieth. What is kept is the best on validation samples, which
nothing else sees. mlx-lm's DWQ and EfficientQAT's second phase (arXiv 2407.11062) tune the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from mixprec.core import artifacts, processes
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.models.head import Head
from mixprec.numerics import divergence
from mixprec.numerics.divergence import CHUNK
from mixprec.tune.options import TuneOptions
from mixprec.tune.student import Student
from mixprec.tune.teacher import Teacher, final_states, forward

_BETAS: Final = (0.9, 0.95)
_WARM_UP: Final = 4
#: Of the rate, at the end of the cosine.
_LAST: Final = 0.05
#: Beside the root of a gradient's mean square, which is about 1e-6 for a number of one group among millions.
_EPS: Final = 1e-12
#: How often a loss that is NaN or infinite halves the rate before that is given up.
_RETREATS: Final = 5


class Sample(NamedTuple):
    """``tokens`` (T,); ``counts`` (T - 1,): how much each predicted token counts."""

    tokens: Tensor
    counts: Tensor


@dataclass
class Course:
    """What happened. ``validation``: (step, mean KL on the validation samples, nats per token), the first before any
    step. ``training``: (step, mean KL of the steps since the last measurement). ``rate``: what is left of the rate."""

    validation: list[tuple[int, float]] = field(default_factory=list)
    training: list[tuple[int, float]] = field(default_factory=list)
    rate: float = 1.0

    @property
    def told(self) -> dict[str, Any]:
        """JSON of it: KL before and after, the step that was kept, and both courses."""
        step, after = self.best
        return {"before": self.before, "after": after, "step": step, **vars(self)}

    @property
    def before(self) -> float:
        """KL on validation without tuning."""
        return self.validation[0][1]

    @property
    def best(self) -> tuple[int, float]:
        """The step with the least KL on validation; 0 is the start."""
        return min(self.validation, key=lambda found: found[1])


class Distillation:
    """``run`` tunes ``student``; ``numbers`` of samples for training and validation are ``teacher``'s."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        training: Sequence[Sample],
        validation: Sequence[Sample],
        options: TuneOptions,
        file: Path,
        stamp: str,
    ) -> None:
        """``file``: where the state lies from which a killed run continues, if it has this ``stamp``."""
        self._student, self._teacher, self._options = student, teacher, options
        self._training, self._validation = training, validation
        self._file, self._stamp = file, stamp
        self._head = Head.of(student.model)
        self._masters = student.masters
        self._per_epoch = math.ceil(len(training) / options.batch)
        self.steps = options.epochs * self._per_epoch
        self.course = Course()
        self._best: dict[str, Tensor] = student.state()
        self._optimizer = self._fresh()
        self._done = 0
        self._losses: list[float] = []

    def run(self, advance: Callable[[int], None]) -> Course:
        """All steps, or those up to the end of patience; the student ends with its best numbers.

        ``advance`` is told of each step, those that were there already first. Raises UserError where the loss stays
        NaN or infinite.
        """
        if not self._resume():
            self._measure()
        advance(self._done)
        while self._done < self.steps and not self._out_of_patience:
            loss = self._step(self._done)
            if not math.isfinite(loss):
                self._retreat()
                continue
            self._losses.append(loss)
            self._done += 1
            advance(1)
            if self._is_check(self._done):
                self._measure()
        self._student.restore(self._best)
        return self.course

    # Steps

    def _step(self, number: int) -> float:
        """Mean KL of the step's samples, after which the masters moved; NaN or infinite, and nothing moved."""
        options = self._options
        order = torch.randperm(
            len(self._training), generator=torch.Generator().manual_seed(options.seed + number // self._per_epoch)
        )
        at = number % self._per_epoch * options.batch
        chosen = order[at : at + options.batch].tolist()
        total = sum(float(self._training[each].counts.sum()) for each in chosen)
        self._optimizer.zero_grad()
        mine = chosen[processes.rank() :: processes.count()]
        loss = sum(self._backward(each, self._training[each], total) for each in mine)
        gradients = [master.step.grad for master in self._masters.values() if master.step.grad is not None]
        if not mine:
            gradients = [master.step.new_zeros(master.step.shape) for master in self._masters.values()]
        loss = processes.add_up(gradients, loss)
        for group, (_, rate) in zip(self._optimizer.param_groups, self._rates(), strict=True):
            group["lr"] = rate * self._schedule(number) * self.course.rate
        if math.isfinite(loss) and all(bool(gradient.isfinite().all()) for gradient in gradients):
            self._optimizer.step()
            return loss
        return math.nan

    def _backward(self, number: int, sample: Sample, total: float) -> float:
        """Gradients of a sample's part of the loss; its part."""
        hidden = forward(self._student.model, sample.tokens[None])[0, :-1]
        cut = hidden.detach().requires_grad_()
        original = self._teacher.states[number][:-1]
        counts = sample.counts.to(hidden.device) / total
        found = 0.0
        for start in range(0, len(cut), CHUNK):
            where = slice(start, start + CHUNK)
            with torch.no_grad():
                log_p = self._teacher.head(original[where]).float().log_softmax(-1)
            log_q = self._head(cut[where]).float().log_softmax(-1)
            part = (divergence.relative_entropy(log_p, log_q) * counts[where]).sum()
            part.backward()
            found += float(part.detach())
        hidden.backward(cut.grad)
        return found

    def _schedule(self, number: int) -> float:
        warm = min(1.0, (number + 1) / _WARM_UP)
        return warm * (_LAST + (1 - _LAST) * (1 + math.cos(math.pi * number / self.steps)) / 2)

    def _rates(self) -> list[tuple[list[torch.nn.Parameter], float]]:
        """Masters that move alike, and the size of their steps."""
        rates = dict.fromkeys(("scales", "zeros"), self._options.rate)
        by_rate: dict[float, list[torch.nn.Parameter]] = {}
        for master in self._masters.values():
            by_rate.setdefault(rates.get(master.kind, self._options.norm_rate), []).append(master.step)
        return [(parameters, rate) for rate, parameters in by_rate.items()]

    def _fresh(self) -> torch.optim.AdamW:
        groups = [{"params": parameters, "lr": rate} for parameters, rate in self._rates()]
        return torch.optim.AdamW(groups, betas=_BETAS, eps=_EPS, weight_decay=0.0)

    # Measuring

    def _is_check(self, number: int) -> bool:
        """Whether validation follows step ``number``, from 1: evenly over an epoch, and at the end."""
        checks = self._options.checks
        at = number % self._per_epoch or self._per_epoch
        return number == self.steps or at * checks // self._per_epoch > (at - 1) * checks // self._per_epoch

    def _measure(self) -> None:
        """KL on the validation samples; the masters are kept where it is the least so far, and the state is saved."""
        mine = range(processes.rank(), len(self._validation), processes.count())
        summed = processes.add_up([], sum(self._kl(number) for number in mine))
        found = summed / sum(float(sample.counts.sum()) for sample in self._validation)
        if not math.isfinite(found) and not self.course.validation:
            raise UserError("tune: the compressed model's logits are NaN or infinite; compute in float32 (tune.dtype)")
        self.course.validation.append((self._done, found))
        if self._losses:
            self.course.training.append((self._done, sum(self._losses) / len(self._losses)))
            self._losses = []
        if self.course.best[0] == self._done:
            self._best = self._student.state()
        self._save()

    def _kl(self, number: int) -> float:
        """KL of a validation sample, a sum over its predicted tokens by their weights."""
        sample = self._validation[number]
        own = final_states(self._student.model, sample.tokens)[:-1]
        original = self._teacher.states[len(self._training) + number][:-1]
        with torch.no_grad():
            found = divergence.divergence(own, self._head, original, self._teacher.head)
        return float((found * sample.counts).sum())

    @property
    def _out_of_patience(self) -> bool:
        return len(self.course.validation) - 1 - self._index_of_best >= self._options.patience

    @property
    def _index_of_best(self) -> int:
        return [step for step, _ in self.course.validation].index(self.course.best[0])

    # Going back, and going on

    def _retreat(self) -> None:
        """Back to the last measurement, at half the rate. Raises UserError where that was done often enough."""
        self.course.rate /= 2
        if self.course.rate < 2**-_RETREATS:
            raise UserError(f"tune: the loss is NaN or infinite at a {2**_RETREATS}th of the rate too; lower tune.rate")
        console.print(f"tune: the loss at step {self._done + 1} is NaN or infinite: back, at half the rate")
        rate = self.course.rate
        self._resume()
        self.course.rate = rate

    def _save(self) -> None:
        if processes.is_main():
            self._write()
        processes.wait()

    def _write(self) -> None:
        tensors = {f"now|{name}": step for name, step in self._student.state().items()}
        tensors |= {f"best|{name}": step for name, step in self._best.items()}
        for name, master in self._masters.items():
            known = self._optimizer.state.get(master.step, {})
            tensors |= {f"{key}|{name}": known[key] for key in known}
        about = {"done": self._done, **vars(self.course)}
        here = {name: tensor.cpu() for name, tensor in tensors.items()}
        artifacts.save_tensors(self._file, here, {"stamp": self._stamp, "course": about})

    def _resume(self) -> bool:
        """Take up what was saved; whether there was something."""
        if not artifacts.is_made(self._file, self._stamp):
            return False
        tensors, about = artifacts.load_tensors(self._file)
        course = dict(about["course"])
        self._done = course.pop("done")
        pairs = {key: [(int(step), kl) for step, kl in course[key]] for key in ("validation", "training")}
        self.course = Course(**pairs, rate=course["rate"])
        self._student.restore({name: tensors[f"now|{name}"] for name in self._masters})
        self._best = {name: tensors[f"best|{name}"] for name in self._masters}
        self._optimizer, self._losses = self._fresh(), []
        for name, master in self._masters.items():
            if f"step|{name}" in tensors:
                moments = {key: tensors[f"{key}|{name}"].to(master.step.device) for key in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[master.step] = {"step": tensors[f"step|{name}"], **moments}
        return True
