"""What a ``quantization_config`` says, in the words that the formats share.

An unknown key may change what runtimes compute, so it is refused. Quantized activations and caches leave the weights as
they are: they are not simulated, and ``notes`` says so.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mixprec.checkpoint.patterns import Matcher
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import AffineFormat, Format, GridFormat

#: Columns that share a scale; -1 (GPTQ's) is a whole row. 32 bits count the columns of any row.
GroupSize = Annotated[int, Field(ge=-1, lt=2**31)]


class Grid(NamedTuple):
    """What config.json says of a packed module; ``symmetric`` None: each group has an offset of 16 bits."""

    bits: int
    group_size: int
    symmetric: bool | None

    @property
    def format(self) -> GridFormat:
        """The same as a format. Raises ValueError for what none is."""
        if self.symmetric is None:
            return AffineFormat(self.bits, self.group_size)
        return Format(self.bits, self.group_size, self.symmetric)


def _nothing(value: Any) -> None:
    if value and not (isinstance(value, dict) and value.get("format") == "dense"):
        raise ValueError(
            f"{reprlib.repr(value)[:80]} changes what runtimes compute, in a way that is not read here; "
            "give a checkpoint without it"
        )


#: A key that is allowed only where it is empty.
Nothing = Annotated[None, BeforeValidator(_nothing)]


class Strict(BaseModel):
    """Keys that are not known are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Said(Strict, ABC):
    """A format's ``quantization_config``."""

    quant_method: str

    @classmethod
    def unreadable(cls, said: Mapping[str, Any]) -> str | None:
        """The key that says that it is of another kind of this format than is read, or None; whether all of it is
        understood, the schema says."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What runtimes quantize besides weights."""
        return ()

    def may_be_dense(self, module: Linear) -> bool:
        """Whether what is said of a module holds only where its tensors are packed."""
        return False

    @abstractmethod
    def grid(self, module: Linear, patterns: Matcher) -> Grid | None:
        """What is said of a module; None where it is not quantized."""
