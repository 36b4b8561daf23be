"""What a runtime loads of a checkpoint format, as a value, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from mixprec.models.decoder import Linear
from mixprec.numerics.formats import AffineFormat, GridFormat

#: Bits that the formats have.
ALL: Final = frozenset(range(2, 9))
NONE: Final[frozenset[int]] = frozenset()

#: Kinds of places where runtimes work: CUDA's GPUs, Apple's, CPUs.
Where = Literal["cuda", "apple", "cpu"]


@dataclass(frozen=True)
class Loader:
    """What one runtime loads of one checkpoint format.

    ``symmetric``, ``asymmetric``, ``affine``: bits of such grids. ``groups``: bits -> group sizes, all that divide the
    columns for other bits; ``multiple``: of which rows and columns have to be multiples. ``fused``: linears that share
    their input need one format. ``uniform``: all packed modules need one format. ``capability``: the least compute
    capability of a GPU, tenfold. ``outside``: what it loads of a packed embedding or head, by kind; nothing of others.
    ``refuses``: why it loads nothing of this format. ``needs``: what has to be there besides.
    """

    symmetric: frozenset[int] = ALL
    asymmetric: frozenset[int] = ALL
    affine: frozenset[int] = NONE
    groups: Mapping[int, frozenset[int]] = field(default_factory=dict)
    multiple: int = 1
    fused: bool = False
    uniform: bool = False
    outside: Mapping[str, Loader] = field(default_factory=dict)
    capability: int = 0
    refuses: str = ""
    needs: str = ""

    def of(self, module: Linear) -> Loader:
        """What it loads of ``module``."""
        if module.layer:
            return self
        return self.outside.get(module.kind, Loader(refuses=f"it loads no packed {module.kind}"))

    def bits(self, format: GridFormat) -> tuple[frozenset[int], str]:
        """The bits of grids of this kind, and what the kind is called."""
        if isinstance(format, AffineFormat):
            return self.affine, "with offsets"
        return (self.symmetric, "symmetric") if format.symmetric else (self.asymmetric, "asymmetric")


@dataclass(frozen=True)
class Fact:
    """What a runtime ``loads`` of a ``format`` from a version on (``since``), in some places (``where``).

    ``source``: the version in which it was read, and the file, or where it was seen.
    """

    runtime: str
    since: tuple[int, ...]
    format: str
    where: tuple[Where, ...]
    loads: Loader
    source: str


@dataclass(frozen=True)
class Runtime:
    """A runtime. ``version``: the newest that is known; ``format``: in which mixprec packs for it; ``device``: where it
    is taken to work unless somebody says."""

    title: str
    version: str
    format: str
    device: str = "ampere"
