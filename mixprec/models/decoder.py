"""The decoder's map: what a model is made of, as data. No other file knows names of modules.

Of the families in ``models/arch/`` sizes are arithmetic on a configuration's keys: no weight, and no torch. The names
of a model's modules and parameters are those of the tensors in its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar

from mixprec.models.arch.family import Sizes
from mixprec.models.labels import Place

_Index = TypeVar("_Index")


@dataclass(frozen=True)
class Linear:
    """One matrix (out_features, in_features) that a plan gives a format to.

    ``address`` model.layers.31.mlp.up_proj, ``layer`` 32 (1-based), ``kind`` up. ``parameter``: its name within
    ``block`` (model.layers.31). ``expert``: the number of the routed expert that it belongs to, if it does. Outside the
    blocks ``layer`` is 0, ``block`` "", and ``kind`` embedding, whose rows are those of tokens, or head.
    """

    address: str
    layer: int
    kind: str
    out_features: int
    in_features: int
    block: str
    parameter: str
    expert: int | None = None

    @property
    def label(self) -> str:
        """The paper's label, 1-based: ``32_up``, ``32_up.e7``; outside the blocks the kind alone."""
        return Place(self.layer, self.kind, expert=self.expert).label

    @property
    def weights(self) -> int:
        """Number of weights, the bias not counted."""
        return self.out_features * self.in_features

    @property
    def weight_name(self) -> str:
        """Name of its tensor in the model and in a checkpoint."""
        return f"{self.block}.{self.parameter}" if self.block else self.parameter

    @property
    def module(self) -> str:
        """Name, within the block, of the module that holds the tensor and receives the linear's input."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Norm:
    """A scale folds into a norm's weight. ``path``: within the block; ``offset``: what it adds to its weight.
    ``beside``: modules within the block that read the norm too and are no linear of it, such as routers."""

    path: str
    offset: float
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """A scale folds into rows of a linear, heads of ``head`` rows, each of which ``share`` heads of channels read."""

    linear: Linear
    head: int = 1
    share: int = 1

    def of(self, channel: _Index) -> _Index:
        """The row that a channel (or a tensor of them) comes from."""
        index: Any = channel
        found: _Index = index // self.head // self.share * self.head + index % self.head
        return found


@dataclass(frozen=True)
class Nowhere:
    """It is known that a scale folds nowhere: what makes the tensor isn't linear, or doesn't keep channels apart."""


@dataclass(frozen=True)
class Group:
    """Linears of a block that receive one tensor, in the order of the block.

    ``source``: where a scale on that tensor folds; None: nowhere that is known. ``fused``: full name of the one matrix
    that runtimes make of them; None where they don't. ``routed``: path within the block of the experts that they belong
    to, whose tokens a router chooses. ``stopped``: why it is not known which other linears receive the tensor, where
    it isn't.
    """

    linears: tuple[Linear, ...]
    source: Norm | Rows | Nowhere | None = None
    fused: str | None = None
    routed: str | None = None
    stopped: str = ""

    def __iter__(self) -> Iterator[Linear]:
        return iter(self.linears)

    def __len__(self) -> int:
        return len(self.linears)

    def __getitem__(self, index: int) -> Linear:
        return self.linears[index]


@dataclass(frozen=True)
class Block:
    """One decoder block. ``layer``: 1-based; ``path``: model.layers.31. ``groups`` in the order in which they work.
    What lies outside the blocks is, to who works on linears, a block with layer 0 and the path "".

    ``norms``: of hidden states, by path within the block; ``head_norms``: those within attention.
    """

    layer: int
    path: str
    groups: tuple[Group, ...]
    norms: tuple[str, ...] = ()
    head_norms: tuple[str, ...] = ()

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The block's linears in order."""
        return tuple(linear for group in self.groups for linear in group)

    @property
    def prefix(self) -> str:
        """What names of its parameters begin with in the model."""
        return f"{self.path}." if self.path else ""


@dataclass(frozen=True)
class Decoder:
    """A model's blocks and what lies around them, by full names.

    ``blocks_path``: the list of blocks. ``around``: what else the blocks need, such as rotary embeddings. ``shapes``:
    every tensor, in the order in which a model names them; a tied head too.
    ``tied``: the head is the embedding. ``unread``: patterns of tensors that checkpoints may hold besides.
    ``chosen``: routed experts of a token, from ``chosen_groups`` of ``expert_groups``. ``parts``: of what
    a block returns, hidden states first; 0: those alone.
    """

    architecture: str
    blocks: tuple[Block, ...]
    shapes: Mapping[str, tuple[int, ...]]
    blocks_path: str
    embedding: str
    around: tuple[str, ...]
    norm: str
    head: str
    sizes: Sizes
    tied: bool
    unread: tuple[str, ...] = ()
    chosen: int = 1
    parts: int = 0
    expert_groups: int = 1
    chosen_groups: int = 1

    def active(self, linear: Linear) -> Fraction:
        """The share of tokens that a linear works on: of a routed expert, those sent to it, were all chosen alike."""
        if linear.expert is None:
            return Fraction(1)
        count = len(self.experts[linear.layer])
        return Fraction(min(self.chosen, count), count)

    @cached_property
    def experts(self) -> dict[int, tuple[int, ...]]:
        """Layer -> numbers of its routed experts, of layers that have some."""
        numbers: dict[int, set[int]] = {}
        for linear in self.linears:
            if linear.expert is not None:
                numbers.setdefault(linear.layer, set()).add(linear.expert)
        return {layer: tuple(sorted(each)) for layer, each in numbers.items()}

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Linears that share their input, block by block."""
        return tuple(group for block in self.blocks for group in block.groups)

    @cached_property
    def stopped(self) -> str:
        """Why it is not known which linears share an input, where it isn't for all of them."""
        return next((group.stopped for group in self.groups if group.stopped), "")

    @cached_property
    def fused(self) -> tuple[tuple[Linear, ...], ...]:
        """Linears that runtimes give one format, in the order of their first ones: those that they make one matrix of,
        all experts of a layer, and groups that share an input."""
        found: dict[str, tuple[Linear, ...]] = {}
        for group in self.groups:
            name = group.fused or group[0].address
            found[name] = (*found.get(name, ()), *group.linears)
        return tuple(found.values())

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """All linear modules, in order."""
        return tuple(linear for group in self.groups for linear in group)

    @cached_property
    def outside(self) -> tuple[Linear, ...]:
        """The matrices outside the blocks, which a plan may give a format to: the embedding, and a head of its own."""
        own = () if self.tied else (self._outside(self.head, "head"),)
        return (self._outside(self.embedding, "embedding"), *own)

    def _outside(self, address: str, kind: str) -> Linear:
        return Linear(address, 0, kind, self.sizes.vocabulary, self.sizes.hidden, "", f"{address}.weight")

    @cached_property
    def outside_named(self) -> dict[str, Linear]:
        """What is outside the blocks by its kinds and addresses; a tied head is the embedding."""
        embedding, head = self.outside[0], self.outside[-1]
        return {"embedding": embedding, "head": head, self.embedding: embedding, self.head: head}

    @cached_property
    def matrices(self) -> tuple[Linear, ...]:
        """All that a plan may give a format to, in order."""
        return (self.outside[0], *self.linears, *self.outside[1:])

    def planned(self, addresses: Container[str]) -> list[Linear]:
        """The matrices among ``addresses``, such as those of a plan, in order."""
        return [linear for linear in self.matrices if linear.address in addresses]

    @cached_property
    def other(self) -> dict[str, int]:
        """Parameters that are no linear's weight -> number of elements: embedding, norms, biases, a head of its own."""
        left_out = {linear.weight_name for linear in self.linears} | ({self.head_weight} if self.tied else set())
        return {name: math.prod(shape) for name, shape in self.shapes.items() if name not in left_out}

    @cached_property
    def _by_address(self) -> dict[str, Linear]:
        return {linear.address: linear for linear in self.matrices}

    def __getitem__(self, address: str) -> Linear:
        return self._by_address[address]

    def group_of(self, linear: Linear) -> Group:
        """The group that a linear is in."""
        return self._group_by_address[linear.address]

    @cached_property
    def _group_by_address(self) -> dict[str, Group]:
        return {linear.address: group for group in self.groups for linear in group}

    @property
    def body(self) -> str:
        """The module that takes tokens through the blocks, without a head."""
        return self.embedding.rpartition(".")[0]

    @property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def embedding_weight(self) -> str:
        """Name of the embedding's tensor."""
        return f"{self.embedding}.weight"

    @property
    def head_weight(self) -> str:
        """Name of the head's tensor, where it has one of its own."""
        return f"{self.head}.weight"

    @property
    def widest_input(self) -> int:
        """Input columns of the widest linear module."""
        return max(linear.in_features for linear in self.linears)

    @property
    def parameters(self) -> int:
        """Number of all parameters, tied ones once."""
        return sum(linear.weights for linear in self.linears) + sum(self.other.values())

    @property
    def outputs(self) -> dict[str, int]:
        """Embedding, norms of hidden states and head, in order -> width of their outputs."""
        norms = (f"{block.path}.{norm}" for block in self.blocks for norm in block.norms)
        return dict.fromkeys((self.embedding, *norms, self.norm), self.sizes.hidden) | {
            self.head: self.sizes.vocabulary
        }

    def alone(self, linear: Linear) -> Decoder:
        """The map of a model that has no other parameters than this linear's."""
        blocks = (Block(linear.layer, linear.block, (Group((linear,)),)),) if linear.layer else ()
        shape = (linear.out_features, linear.in_features)
        return replace(self, blocks=blocks, shapes={linear.weight_name: shape})
