"""What a table of ``models/arch/`` says of a family of decoders: names, and sizes as fields of ``Sizes``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """Widths by the keys of a configuration. ``query``, ``key``: all heads of q, of k and v; ``head``: one of them."""

    hidden: int
    intermediate: int
    query: int
    key: int
    head: int
    vocabulary: int


@dataclass(frozen=True)
class Row:
    """A linear module of every block: ``out`` x ``into``, fields of Sizes.

    ``path``: within the block. ``bias``: whether it has one, or the key of the configuration that says so.
    ``compares``: attention's scores are made of its outputs.
    """

    kind: str
    path: str
    out: str
    into: str
    bias: bool | str = False
    compares: bool = False


@dataclass(frozen=True)
class Shared:
    """Linears that receive one tensor, by ``kinds``, and where a scale on it folds: nowhere, or one of two places.

    ``norm``: it is the output of this norm of the block. ``rows``: each of its channels comes from one row of the
    linear of this kind; ``heads``: by way of attention, where several heads may share one of that linear's.
    ``fused``: what runtimes call the one matrix that they make of these linears, within the block.
    """

    kinds: tuple[str, ...]
    norm: str | None = None
    rows: str | None = None
    heads: bool = False
    fused: str | None = None


@dataclass(frozen=True)
class Family:
    """Decoders that are made alike.

    ``parts``: part of a block -> its linears; both in the order in which a block holds them, which is that of the
    heatmap's rows. ``norms``: of hidden states, within a block; ``head_norms``: those that see single heads.
    ``offset``: what norms add to their weight. ``defaults``: values of keys that config.json leaves out.
    """

    parts: Mapping[str, tuple[Row, ...]]
    shared: tuple[Shared, ...]
    norms: tuple[str, ...]
    defaults: dict[str, Any]
    head_norms: tuple[str, ...] = ()
    offset: float = 0.0
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    around: tuple[str, ...] = ("model.rotary_emb",)
    norm: str = "model.norm"
    head: str = "lm_head"


@dataclass(frozen=True)
class Known:
    """What can't be seen of decoders that are discovered: where a scale on an input folds. ``offset``: as of Family.

    ``readers``: norm -> modules within a block that read it beside its linears, such as routers, where they are there.
    """

    shared: tuple[Shared, ...]
    offset: float = 0.0
    readers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
