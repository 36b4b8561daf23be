"""Tuning block by block: a block's codes and scales by the error of what the block puts out, one block in memory.

For models whose gradients don't fit. The linears of a block were solved one after the other, each for its own outputs;
here they move together. The loss is the squared error of the block's output, for the states that the compressed model
enters it with, against what the original block puts out for the original model's states (as AutoRound, arXiv
2309.05516, and BRECQ, 2102.05426), each token relative to its size: the few tokens that a model parks its attention on
are a hundred times as large as others, and would be all that is tuned for. What moves, and how: ``rounding.py``.

All methods overfit calibration tokens: some samples are set aside, and what a block is left with is the best that was
seen on these, its start among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mixprec.calibration.data import Calibration
from mixprec.compress.refining import Refined, SolvedBlock
from mixprec.compress.solving import Solved
from mixprec.core import devices
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.models.weights import through, weight_of
from mixprec.numerics import storage
from mixprec.numerics.formats import AnyFormat, fitting
from mixprec.numerics.storage import AnyQuantized
from mixprec.numerics.tunable import TUNABLE
from mixprec.plan.methods import pruners
from mixprec.tune import RULES
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.tune.rounding import Rounding
from mixprec.walk.samples import FULL

#: A pass takes so many times the memory where it keeps what gradients need.
_KEPT = 4
_TINY = 1e-30


class BlockTuner:
    """What compression calls for each block: a compress.refining.Refine."""

    def __init__(self, options: TuneBlocks, calibration: Calibration | None) -> None:
        """Raises UserError where ``calibration`` has no samples besides those that are set aside."""
        count = 0 if calibration is None else len(calibration.tokens)
        if calibration is not None and (problem := options.too_few(count)):
            raise UserError(problem)
        self._options = options
        order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed)).tolist()
        self._aside, self._training = sorted(order[: options.validation]), sorted(order[options.validation :])

    @property
    def settings(self) -> Mapping[str, object]:
        """All that results depend on besides the samples."""
        return {"tune_blocks": {"rules": RULES, **self._options.model_dump()}}

    def __call__(self, solved: SolvedBlock) -> Refined:
        course = _Course(solved, self._options)
        return course.run(self._training, self._aside) if course.moves else Refined({}, 1.0)


class _Course:
    """The steps of one block."""

    def __init__(self, given: SolvedBlock, options: TuneBlocks) -> None:
        self._given, self._options = given, options
        self._linears = {m.address: m for group in given.groups for m in group if m.address in given.solved}
        found = {address: _rounding(given, address, options) for address in self._linears}
        self._moving = {address: each for address, each in found.items() if each is not None and each.moves}
        #: Samples of one pass.
        self._size = max(1, given.samples.batches[0].stop // _KEPT)

    @property
    def moves(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._moving) and self._options.steps > 0

    def run(self, training: Sequence[int], aside: Sequence[int]) -> Refined:
        """All steps on samples for ``training``; those set ``aside`` choose. The block ends with any weights in it."""
        steps, checks = self._options.steps, self._options.checks
        looks = {round(steps * (n + 1) / checks) for n in range(checks)}
        before = least = self._measure(aside)
        best: dict[str, AnyQuantized] = {}
        draws = self._draws(training)
        for step in range(steps):
            if not self._step(next(draws), 1 - step / steps):
                console.print(
                    f"block {self._given.number + 1}: gradients are NaN or infinite at step {step + 1} of tuning; "
                    "it goes back to the best before"
                )
                break
            if step + 1 in looks and (error := self._measure(aside)) < least:
                least, best = error, {address: each.quantized() for address, each in self._moving.items()}
        return Refined({a: self._solved(a, now) for a, now in best.items()}, least / before if best else 1.0)

    def _draws(self, training: Sequence[int]) -> Iterator[list[int]]:
        """The samples of one step after the other: all in one order, then in another."""
        generator = torch.Generator().manual_seed(self._options.seed * 100_003 + self._given.number)
        waiting: list[int] = []
        while True:
            while len(waiting) < self._options.batch:
                order = torch.randperm(len(training), generator=generator).tolist()
                waiting += [training[number] for number in order]
            yield waiting[: self._options.batch]
            waiting = waiting[self._options.batch :]

    def _step(self, rows: Sequence[int], pace: float) -> bool:
        """One step, at a part of the speed; False, and nothing moved, where a gradient isn't finite."""
        options, made = self._options, self._put()
        with _training(self._given.block, {self._linears[address].parameter for address in made}) as block:
            for part in _parts(rows, self._size):
                with torch.enable_grad():
                    self._error(part, options.dtype).backward()
            gradients = {address: self._gradient(block, address) for address in made}
        if not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
            return False
        # The speed falls to zero in even steps, so that positions move by ``reach`` at most.
        move = 2 * options.reach / (options.steps + 1) * pace
        for address, each in self._moving.items():
            each.step(made[address], gradients[address], move, options.rate * pace)
        return True

    def _gradient(self, block: nn.Module, address: str) -> Tensor:
        """Of the error by a module's weight (out, in); zero where no token came to it."""
        linear = self._linears[address]
        found = block.get_parameter(linear.parameter).grad
        if found is None:
            return torch.zeros_like(weight_of(block, linear))
        return found.clone()

    def _measure(self, rows: Sequence[int]) -> float:
        """The error on some samples of what would be stored, in the type that the model computes in."""
        self._put()
        return sum(float(self._error(part)) for part in _parts(rows, self._size))

    def _put(self) -> dict[str, Tensor]:
        """Give the block the weights that would be stored; returns them, differentiable in what moves."""
        made = {}
        for address, each in self._moving.items():
            linear = self._linears[address]
            with torch.enable_grad():
                made[address] = each.weight(self._given.stored[linear.parameter])
            weight_of(self._given.block, linear).copy_(made[address].detach())
        return made

    def _error(self, rows: Sequence[int], dtype: str | None = None) -> Tensor:
        """Sum over tokens, by their weights, of ‖output − target‖² / ‖target‖²; products in ``dtype``, by default the
        model's."""
        given = self._given
        samples = given.samples
        entering, target = samples.rows(rows), samples.rows(rows, FULL).float()
        dtype = devices.quickest_dtype(entering.device.type) if dtype == "auto" else dtype
        with torch.autocast(entering.device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
            output = through(given.block, entering, samples.contexts.any(given.number, len(entering)))
        error = (output.float() - target).square().sum(-1) / target.square().sum(-1).clamp(min=_TINY)
        counts = None if samples.weights is None else samples.weights[list(rows)]
        total: Tensor = (error if counts is None else error * counts).sum()
        return total

    def _solved(self, address: str, now: AnyQuantized) -> Solved:
        """A module's result with other codes and numbers."""
        old = self._given.solved[address]
        restored = storage.dequantize(now, _format(self._given, address), old.restored.dtype)
        return old._replace(quantized=now, restored=restored.to(old.restored.device), rests=None)


def _format(given: SolvedBlock, address: str) -> AnyFormat:
    """What a module's weights are in."""
    return fitting(given.treatments[address].format, given.solved[address].restored.shape[1])


def _rounding(given: SolvedBlock, address: str, options: TuneBlocks) -> Rounding | None:
    """A module's weight as it moves; None for formats that nothing moves in."""
    solved, format = given.solved[address], _format(given, address)
    if type(format) not in TUNABLE or solved.scale is not None:
        return None
    pruned = solved.restored == 0 if given.treatments[address].method in pruners() else None
    rests = given.rests[address] if options.codes else None
    return Rounding(solved.quantized, format, rests=rests, fixed=pruned, scales=options.scales)


@contextmanager
def _training(block: nn.Module, names: Collection[str]) -> Iterator[nn.Module]:
    """``block`` with gradients of the parameters of these names and no others; what it had comes back at the end."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in block.parameters()]
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name in names).grad = None
    try:
        yield block
    finally:
        for parameter, wanted, gradient in before:
            parameter.requires_grad_(wanted).grad = gradient


def _parts(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
