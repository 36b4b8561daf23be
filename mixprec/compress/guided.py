"""Guided solves: Hessians weighted by a loss's gradients at the outputs of linears (GuidedQuant, arXiv 2505.07004).

Before anything is compressed the calibration samples go up through the original model's blocks, and gradients come down
through them. Of these, how much each token counts for each group of a linear's outputs is kept, in a file per sample:
a killed run continues with the samples that are missing. The weights of tokens in the calibration data are those of
their predictions in the loss; so behaviours that count more do so at every linear, through all that attends to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec.calibration.data import Calibration
from mixprec.compress import RULES
from mixprec.compress.options import GuidedSpec, SolveOptions
from mixprec.compress.solving import GroupInputs, Part
from mixprec.core import artifacts, locks, processes
from mixprec.core.errors import UserError
from mixprec.core.memory import release_memory
from mixprec.models.decoder import Decoder, Group, Linear
from mixprec.models.model import Model
from mixprec.models.weights import map_in
from mixprec.numerics.products import Products, multiplying
from mixprec.numerics.salience import normalised, row_groups, saliences
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.methods import guidable
from mixprec.walk import blocks
from mixprec.walk.backward import back
from mixprec.walk.losses import Row, at_hidden
from mixprec.walk.options import MEMORY_GB
from mixprec.walk.walk import walk

#: Samples of one sweep at most, after which their files are there: the weights are read twice for all of them.
_TOGETHER = 8
_ALL = "all"


class Guidance(NamedTuple):
    """Saliences on disk: ``files``, one for each calibration sample; ``power``: what they are raised to."""

    files: Sequence[Path]
    power: float

    def of(self, linears: Iterable[Linear]) -> dict[str, Tensor]:
        """Address -> (N, T, G) float32 weights of all tokens for each group of outputs, each with mean 1."""
        found: dict[str, list[Tensor]] = {linear.address: [] for linear in linears}
        for path in self.files:
            with artifacts.open_tensors(path) as file:
                for address, parts in found.items():
                    parts.append(file.get_tensor(address))
        return {address: normalised(torch.stack(parts), self.power) for address, parts in found.items()}


class GroupWeights(NamedTuple):
    """How tokens count for a group of linears: ``weights`` (N, T, 1 + K), those that hold for all rows alike first,
    then those of the ``parts``, address and rows; None where only the first are asked for, and are the samples' own."""

    weights: Tensor | None = None
    parts: Sequence[tuple[Linear, slice]] = ()

    @property
    def sums(self) -> int:
        """How many statistics there are."""
        return 1 + len(self.parts)

    def inputs(self, found: Sequence[InputStatistics], options: SolveOptions) -> GroupInputs:
        """What the group is solved with, of the statistics by these weights."""
        common, *own = found
        parts: dict[str, list[Part]] = {}
        for (linear, rows), statistics in zip(self.parts, own, strict=True):
            parts.setdefault(linear.address, []).append(Part(rows, GroupInputs(statistics, options)))
        return GroupInputs(common, options, parts)


def group_weights(group: Group, guiding: Mapping[str, Tensor], own: Tensor | None) -> GroupWeights:
    """``guiding``: address -> (N, T, G) weights of a linear's own; ``own`` (N, T): those of the samples."""
    found = [(linear, guiding[linear.address]) for linear in group if linear.address in guiding]
    if not found:
        return GroupWeights()
    parts = [(linear, rows) for linear, each in found for rows in row_groups(linear.out_features, each.shape[-1])]
    first = torch.ones(found[0][1].shape[:2]) if own is None else own.cpu()
    return GroupWeights(torch.cat([first[..., None], *(each for _, each in found)], -1), parts)


def wanted(methods: Iterable[str], options: SolveOptions, calibration: Calibration | None) -> GuidedSpec | None:
    """How the solves of these methods are guided; None where none is."""
    return options.guided if calibration is not None and guidable(methods) else None


def samples_swept(methods: Iterable[str], options: SolveOptions, calibration: Calibration | None) -> int:
    """How many samples gradients are taken of before these methods solve."""
    return 0 if calibration is None or wanted(methods, options, calibration) is None else len(calibration.tokens)


def disk(methods: Iterable[str], options: SolveOptions, calibration: Calibration | None, decoder: Decoder) -> int:
    """Bytes of the saliences on disk."""
    spec = wanted(methods, options, calibration)
    if spec is None or calibration is None:
        return 0
    parts = sum(
        len(row_groups(linear.out_features, spec.groups)) for linear in decoder.linears if linear.expert is None
    )
    return 4 * parts * calibration.tokens.numel()


def guide(
    model: Model,
    methods: Iterable[str],
    calibration: Calibration | None,
    options: SolveOptions,
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
    memory_gb: float = MEMORY_GB,
    shared: bool = False,
) -> Guidance | None:
    """The saliences of all samples, ``gather``ed in ``folder``; None where no solve is guided.

    ``shared``: with the other processes. A process that knows nothing of this one and wants the same ones waits.
    """
    spec = wanted(methods, options, calibration)
    if spec is None or calibration is None:
        return None
    opened, products = model.open_blocks(), options.products
    with nullcontext() if shared else locks.once(folder, "--out"):
        return gather(opened, model.identity, calibration, spec, folder, advance, memory_gb, products, shared)


@torch.no_grad()
def gather(
    opened: blocks.Blocks | blocks.Live,
    identity: str,
    calibration: Calibration,
    spec: GuidedSpec,
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
    memory_gb: float = MEMORY_GB,
    products: Products = "model",
    shared: bool = False,
) -> Guidance:
    """See to it that the saliences of all samples are in ``folder``.

    ``opened``: with norm and head. ``identity``: the model's. ``advance`` is told of each sample that is done.
    ``memory_gb``: 10^9 bytes of states in front of all blocks; a sample always goes. ``products``: the type in which
    blocks multiply. ``shared``: the processes of a launcher share the samples, and have all of them in the end. Raises
    UserError for gradients that are NaN or infinite.
    """
    tokens, model = calibration.tokens, opened.model
    computed = [str(model.dtype), model.device.type, *([products] if products != "model" else [])]
    stamp = artifacts.fingerprint(RULES, identity, calibration.digest, spec.model_dump(exclude={"power"}), *computed)
    files = [folder / f"{number:05d}.safetensors" for number in range(len(tokens))]
    left = [number for number, path in enumerate(files) if not artifacts.is_made(path, stamp)]
    if shared:
        left = processes.agree(left)
    advance(len(files) - len(left))
    if shared:
        left = left[processes.rank() :: processes.count()]
    each = tokens.shape[1] * map_in(model).sizes.hidden * model.dtype.itemsize * opened.layers
    size = max(1, min(_TOGETHER, int(memory_gb * 1e9 // each)))
    for start in range(0, len(left), size):
        here = left[start : start + size]
        for number, found in zip(here, _sweep(opened, calibration, here, spec, products), strict=True):
            artifacts.save_tensors(files[number], found, {"stamp": stamp})
        advance(len(here))
    if shared:
        processes.wait()
        processes.check_shared(files)
    return Guidance(files, spec.power)


class _Traveller:
    """A sample on its way: what entered each block, and gradients on the way down."""

    def __init__(self, hidden: Tensor) -> None:
        self.states, self.found = [hidden], dict[str, Tensor]()
        self.gradients: Tensor


def _sweep(
    opened: blocks.Blocks | blocks.Live,
    calibration: Calibration,
    numbers: Sequence[int],
    spec: GuidedSpec,
    products: Products,
) -> Iterator[dict[str, Tensor]]:
    """Of some samples, address -> (T, G) saliences."""
    model, decoder = opened.model, map_in(opened.model)
    entering = [blocks.block_inputs(model, calibration.tokens[number][None]) for number in numbers]
    travellers = [_Traveller(each.hidden) for each in entering]

    def up(index: int, block: nn.Module) -> None:
        for each, given in zip(travellers, entering, strict=True):
            each.states.append(blocks.behind(block, each.states[-1], given.contexts[index], products))

    def down(index: int, block: nn.Module) -> None:
        for number, each, given in zip(numbers, travellers, entering, strict=True):
            context, known = given.contexts[index], decoder.blocks[index]
            with multiplying(products, model.device):
                each.gradients, met = back(block, known, each.states.pop(), each.gradients, context)
            for address, (_, gradients) in met.items():
                if decoder[address].expert is not None:
                    continue  # not all tokens come to it: experts are solved unguided
                each.found[address] = _checked(saliences(gradients, spec.groups), address, number).cpu()
            release_memory()

    walk(opened, range(opened.layers), up)
    for number, each in zip(numbers, travellers, strict=True):
        each.gradients = _at_the_top(model, each.states.pop(), calibration, number, spec)
    walk(opened, reversed(range(opened.layers)), down)
    return (each.found for each in travellers)


def _at_the_top(model: Any, hidden: Tensor, calibration: Calibration, number: int, spec: GuidedSpec) -> Tensor:
    """Gradients (R, T, hidden) of a sample's losses at the last block's output ``hidden`` (1, T, hidden)."""
    tokens = calibration.tokens[number]
    counts = torch.ones(len(tokens)) if calibration.weights is None else calibration.weights[number]
    draws = spec.draws if spec.loss == "fisher" else 1
    rows = [Row(spec.loss, _ALL, draw) for draw in range(draws)]
    # Squares of gradients shall count by the weights: at_hidden takes the root for random losses only.
    counts = counts[1:].float() if spec.loss == "fisher" else counts[1:].float().sqrt()
    return at_hidden(model, hidden, None, tokens, rows, {_ALL: counts}, spec.seed + number)


def _checked(found: Tensor, address: str, number: int) -> Tensor:
    if not torch.isfinite(found).all():
        raise UserError(
            f"{address}: gradients at its outputs are NaN or infinite on calibration sample {number}; compute in "
            "float32 or bfloat16 (model.dtype)"
        )
    return found
