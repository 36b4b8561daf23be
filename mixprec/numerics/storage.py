"""What every kind of format knows of its weights: the values that codes stand for, and the tensors that hold them.

The tensors are for files of our own: compact, and read back exactly. (Checkpoint formats lay the same codes out as
their readers want them.) A kind of format is a row of STORAGE; nothing here asks which kind one is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from mixprec.numerics import affine, codebook, ggml, groupwise, plain
from mixprec.numerics.affine import AffineQuantized
from mixprec.numerics.codebook import CodebookQuantized
from mixprec.numerics.formats import AffineFormat, AnyFormat, CodebookFormat, Drop, Format, GgmlFormat, Keep
from mixprec.numerics.ggml import GgmlQuantized
from mixprec.numerics.groupwise import Quantized
from mixprec.numerics.plain import Plain

#: What a weight becomes: in a format of each kind, the one that it names.
AnyQuantized = Quantized | AffineQuantized | CodebookQuantized | GgmlQuantized | Plain
#: Name of what columns were multiplied with before, among a weight's tensors.
_SCALE: Final = "column_scale"


class Storage(NamedTuple):
    """How one kind of format is stored.

    ``dequantize``: (quantized, format, dtype) -> the weight (out, in), rounded once to ``dtype``. ``to_tensors``:
    (quantized, format) -> tensors by name. ``from_tensors``: (those, format, shape of the weight) -> quantized.
    """

    dequantize: Callable[[Any, Any, torch.dtype], Tensor]
    to_tensors: Callable[[Any, Any], dict[str, Tensor]]
    from_tensors: Callable[[Mapping[str, Tensor], Any, tuple[int, int]], AnyQuantized]


STORAGE: Final[Mapping[type, Storage]] = {
    Keep: Storage(plain.dequantize, plain.to_tensors, plain.from_tensors),
    Drop: Storage(plain.dequantize, plain.to_tensors, plain.from_tensors),  # zeros, where one is looked at alone
    Format: Storage(groupwise.dequantize, groupwise.to_tensors, groupwise.from_tensors),
    AffineFormat: Storage(affine.dequantize_affine, affine.to_tensors, affine.from_tensors),
    CodebookFormat: Storage(codebook.dequantize_codebook, codebook.to_tensors, codebook.from_tensors),
    GgmlFormat: Storage(
        lambda quantized, format, dtype: ggml.dequantize_ggml(quantized, dtype),
        lambda quantized, format: {"blocks": quantized.data},
        lambda tensors, format, shape: GgmlQuantized(tensors["blocks"], format),
    ),
}


def dequantize(quantized: AnyQuantized, format: AnyFormat, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that ``quantized``, in ``format``, stands for, rounded once to ``dtype``."""
    return STORAGE[type(format)].dequantize(quantized, format, dtype)


def to_tensors(quantized: AnyQuantized, format: AnyFormat) -> dict[str, Tensor]:
    """The tensors that hold ``quantized``, which is in ``format``, by names within the module."""
    return STORAGE[type(format)].to_tensors(quantized, format)


def from_tensors(tensors: Mapping[str, Tensor], format: AnyFormat, shape: tuple[int, int]) -> AnyQuantized:
    """The inverse of ``to_tensors``, for a weight of this shape."""
    return STORAGE[type(format)].from_tensors(tensors, format, shape)


def split(quantized: AnyQuantized, rows: Sequence[int]) -> list[AnyQuantized]:
    """``quantized``, of weights with so many rows that were stacked, as one for each of them."""
    # All tensors of whatever kind of quantized weight have one entry for each row.
    starts = [0, *accumulate(rows)]
    where = zip(starts[:-1], rows, strict=True)
    return [_each(quantized, partial(torch.narrow, dim=0, start=start, length=count)) for start, count in where]


def on_device(quantized: AnyQuantized, device: torch.device | str, *, copy: bool = False) -> AnyQuantized:
    """``quantized`` with its tensors on a device; ``copy``: each in memory of its own."""
    found: AnyQuantized = _each(quantized, lambda tensor: tensor.to(device, copy=copy))
    return found


def join(parts: Sequence[AnyQuantized]) -> AnyQuantized:
    """The inverse of ``split``."""
    found: AnyQuantized = _stacked(parts)
    return found


def _stacked(parts: Sequence[Any]) -> Any:
    """As ``split``, the other way round."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], tuple):
        return type(parts[0])(*(_stacked(each) for each in zip(*parts, strict=True)))
    return parts[0]


def _each(quantized: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``quantized`` with each of its tensors changed."""
    if isinstance(quantized, Tensor):
        return change(quantized)
    if isinstance(quantized, tuple):
        return type(quantized)(*(_each(part, change) for part in quantized))
    return quantized


def stored(quantized: AnyQuantized, format: AnyFormat, scale: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors from which ``restored`` makes a weight.

    ``scale`` (in,): what the columns of ``quantized``, in ``format``, are to be divided by, None for nothing.
    """
    tensors = to_tensors(quantized, format)
    return tensors if scale is None else tensors | {_SCALE: scale}


def restored(tensors: Mapping[str, Tensor], format: AnyFormat, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight of this ``shape`` that ``stored``'s tensors stand for, in ``dtype``, that of the checkpoint."""
    own = {name: tensor for name, tensor in tensors.items() if name != _SCALE}
    return unscaled(dequantize(from_tensors(own, format, shape), format, dtype), tensors.get(_SCALE))


def unscaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """``weight`` (out, in), rounded, with its columns divided by ``scale`` (in,) float32 and rounded again."""
    return weight if scale is None else (weight.float() / scale).to(weight.dtype)
