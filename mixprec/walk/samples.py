"""Calibration samples on their way through a model's blocks, in micro-batches.

What samples leave in front of a block is kept (``States``), what they leave inside one is gone with their micro-batch:
memory doesn't grow with the number of samples. Where all of them fit in at once, one micro-batch holds them all.
Sums over samples are taken in pieces of the same rows whatever the micro-batches are, so that results don't depend on
how much memory there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec.calibration.data import Calibration
from mixprec.core import processes
from mixprec.core.errors import UserError
from mixprec.models.arch.family import Sizes
from mixprec.models.decoder import Group
from mixprec.numerics.products import Products
from mixprec.numerics.statistics import InputStatistics, InputSums
from mixprec.walk import blocks
from mixprec.walk.contexts import Contexts
from mixprec.walk.hooks import arguments_of, watching
from mixprec.walk.options import numbers_inside
from mixprec.walk.states import States

#: Rows of inputs that are turned to float32 at once.
_ROWS = 16_384
#: The model's own stream of states, and that of the uncompressed model beside it.
OWN, FULL = "own", "full"


class Seen(NamedTuple):
    """Some samples' ``inputs`` (n, T, in) of a linear, their tokens' ``weights`` (n, T, K) in K sums, and the inputs
    ``full`` (n, T, in) that the uncompressed model has; None where all weights are 1, or nobody asks for the other
    model's."""

    inputs: Tensor
    weights: Tensor | None = None
    full: Tensor | None = None

    def part(self, where: slice) -> Seen:
        """Some of these samples."""
        inputs, weights, full = self
        return Seen(inputs[where], None if weights is None else weights[where], None if full is None else full[where])

    def blank(self, count: int) -> Seen:
        """Room for so many samples like these."""

        def new(like: Tensor) -> Tensor:
            return like.new_empty(count, *like.shape[1:])

        inputs, weights, full = self
        return Seen(new(inputs), None if weights is None else new(weights), None if full is None else new(full))


class Gathering:
    """Sums over inputs of ``width`` numbers that come in micro-batches, added in pieces of ``size`` samples.

    ``count``: how many sums of the same inputs are taken, each with weights of its own. ``products``: the type they
    multiply in. ``shared``: the other processes see other samples, and ``results`` are of all of them.
    """

    def __init__(
        self,
        width: int,
        size: int,
        *,
        count: int = 1,
        drift: bool = False,
        device: torch.device | str = "cpu",
        products: Products = "model",
        shared: bool = False,
    ) -> None:
        self._shared = shared
        self._sums = [InputSums(width, drift=drift, device=device, products=products) for _ in range(count)]
        self._size = size
        self._buffer: Seen | None = None
        self._filled = 0

    def add(self, seen: Seen) -> None:
        """Add the next samples."""
        start, count = 0, len(seen.inputs)
        while start < count:
            part = seen.part(slice(start, start + self._size - self._filled))
            if len(part.inputs) == self._size:
                self._take(part)
            else:
                self._hold(part)
            start += len(part.inputs)

    def results(self) -> list[InputStatistics]:
        """The statistics of all that was added. Raises ValueError where no token with a weight above 0 was."""
        if self._buffer is not None and self._filled:
            self._take(self._buffer.part(slice(0, self._filled)))
            self._filled = 0
        if self._shared:
            for each in self._sums:
                each.join(processes.sum_up)
            self._shared = False
        return [each.result() for each in self._sums]

    def _take(self, piece: Seen) -> None:
        """Add samples to all sums."""
        inputs, weights, full = piece
        for number, each in enumerate(self._sums):
            each.add(inputs, None if weights is None else weights[..., number], full)

    def _hold(self, part: Seen) -> None:
        """Keep samples until a piece is full."""
        if self._buffer is None:
            self._buffer = part.blank(self._size)
        end = self._filled + len(part.inputs)
        for whole, each in zip(self._buffer, part, strict=True):
            if whole is not None and each is not None:
                whole[self._filled : end] = each
        self._filled = end
        if end == self._size:
            self._take(self._buffer)
            self._filled = 0


class Samples:
    """``batches``: which samples (N, T) each micro-batch has. ``states``: (stream, number of the batch) -> (n, T,
    hidden), what enters the next block. ``piece``: how many samples are added to sums at once. ``products``: the type
    in which blocks and sums multiply. ``where``: which of the calibration samples these are; ``shared``: whether other
    processes have the others."""

    def __init__(
        self,
        model: Any,
        calibration: Calibration,
        states: States,
        size: int,
        *,
        piece: int | None = None,
        streams: tuple[str, ...] = (OWN,),
        products: Products = "model",
        shared: bool = False,
    ) -> None:
        """In front of the first block of ``model``; ``size`` samples make a micro-batch. Of ``shared`` samples this
        process has its part."""
        self.shared, self.where = shared, part_of(len(calibration.tokens)) if shared else slice(None)
        tokens = calibration.tokens[self.where]
        self.batches = [slice(start, start + size) for start in range(0, len(tokens), size)]
        self.states, self.streams, self.products = states, streams, products
        self.piece = min(len(tokens), piece or max(1, _ROWS // tokens.shape[1]))
        self._tokens = tokens
        self.enter(model, streams)
        self.contexts = Contexts(model, tokens, self.batches)
        self.device = self.states[streams[0], 0].device
        #: (N, T) of all tokens; None where all are 1.
        self.weights = None if calibration.weights is None else calibration.weights[self.where].to(self.device)

    def enter(self, model: Any, streams: Sequence[str] = (OWN,)) -> None:
        """Take samples in front of the first block, as the embedding of ``model`` has them now."""
        for number, where in enumerate(self.batches):
            entering = blocks.block_inputs(model, self._tokens[where]).hidden
            for stream in streams:
                self.states[stream, number] = entering

    def weighed(self, number: int, weights: Tensor | None = None) -> Tensor | None:
        """(n, T, K) of a micro-batch's tokens, of ``weights`` (N, T, K) of all that are here; by default their own, or
        None."""
        if weights is not None:
            return weights[self.batches[number]].to(self.device)
        return None if self.weights is None else self.weights[self.batches[number], :, None]

    def rows(self, where: Sequence[int], stream: str = OWN) -> Tensor:
        """The states (n, T, hidden) of some samples, by their numbers."""
        size = self.batches[0].stop
        return torch.cat([self.states[stream, row // size][row % size, None] for row in where])

    def through(self, number: int, index: int, block: nn.Module, stream: str = OWN) -> Tensor:
        """What a micro-batch (n, T, hidden) leaves the model's block number ``index`` with."""
        hidden = self.states[stream, number]
        return blocks.behind(block, hidden, self.contexts.of(index, number, len(hidden)), self.products)

    def move(self, number: int, index: int, block: nn.Module, stream: str = OWN) -> None:
        """Take a micro-batch behind a block."""
        self.states[stream, number] = self.through(number, index, block, stream)

    def shaped(self, number: int, inputs: Tensor) -> Tensor:
        """What a module is given by a micro-batch, as (n, T, in): some models put all tokens into one row of them."""
        count, length = len(self._tokens[self.batches[number]]), self._tokens.shape[1]
        return inputs.view(count, length, -1) if inputs.shape[:-1] == (count * length,) else inputs

    def run(
        self,
        index: int,
        block: nn.Module,
        groups: Sequence[Group] = (),
        see: Callable[[int, int, Tensor], None] = lambda *_: None,
        *,
        stream: str = OWN,
        move: bool = True,
    ) -> None:
        """Take all micro-batches through a block; ``see(number of the batch, of the group, inputs)`` on the way.

        They end behind the block if they ``move``, else stay in front of it.
        """
        for number in range(len(self.batches)):

            def told(group: int, inputs: Tensor, number: int = number) -> None:
                see(number, group, self.shaped(number, inputs))

            with watching(block, groups, told):
                output = self.through(number, index, block, stream)
            if move:
                self.states[stream, number] = output

    def arguments(self, number: int, index: int, block: nn.Module, modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        """What the first of a block's ``modules`` that a micro-batch reaches is called with; the pass ends there."""
        return arguments_of(modules, lambda: self.through(number, index, block))

    def gathering(
        self, width: int, count: int = 1, *, drift: bool = False, device: torch.device | str = "cpu"
    ) -> Gathering:
        """For sums over inputs of all samples."""
        return Gathering(
            width,
            self.piece,
            count=count,
            drift=drift,
            device=device,
            products=self.products,
            shared=self.shared,
        )

    def statistics(
        self,
        index: int,
        block: nn.Module,
        groups: Sequence[Group],
        weights: Sequence[Tensor | None] = (),
        *,
        move: bool = False,
    ) -> Iterator[list[InputStatistics]]:
        """Of the inputs of each group when all samples pass, which stay in front of the block unless they ``move``.

        ``weights``: for each group (N, T, K) of all tokens in K statistics, or None for the samples' own in one.
        """
        device = next(block.parameters()).device
        chosen = list(weights) or [None] * len(groups)
        sums = [
            self.gathering(group[0].in_features, 1 if own is None else own.shape[-1], device=device)
            for group, own in zip(groups, chosen, strict=True)
        ]

        def add(number: int, group: int, inputs: Tensor) -> None:
            sums[group].add(Seen(inputs, self.weighed(number, chosen[group])))

        self.run(index, block, groups, add, move=move)
        return (each.results() for each in sums)


def part_of(samples: int) -> slice:
    """Which of so many calibration samples this process has, where several share them.

    Raises UserError where there are fewer samples than processes.
    """
    count, rank = processes.count(), processes.rank()
    if samples < count:
        raise UserError(f"calibration.samples: {samples}: {count} processes share them; give at least one to each")
    return slice(samples * rank // count, samples * (rank + 1) // count)


def batch_size(sizes: Sizes, tokens: Tensor, dtype: torch.dtype, limit: int) -> int:
    """How many samples of ``tokens`` (N, T) leave about ``limit`` bytes inside a block: all of them, or as many as
    may be there twice, since one micro-batch waits where a block is being solved while the others follow."""
    samples, length = tokens.shape
    each = length * numbers_inside(sizes) * dtype.itemsize
    return samples if samples * each <= limit else max(1, int(limit // (2 * each)))
