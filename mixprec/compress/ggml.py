"""ggml: llama.cpp's own types, q8_0 down to iq1_s, quantized as llama.cpp quantizes them.

Python's ``gguf`` knows how for types with plain blocks of 32, mxfp4, tq1_0 and tq2_0. All others, and an importance
vector for any, come from llama.cpp itself: its ``ggml_quantize_chunk``, exported by the library of the wheel xllamacpp.
The vector is what llama.cpp's imatrix holds, the mean of x_j² over tokens for every input j: the diagonal of the
calibration's second moments. An error of weight j costs that much.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from torch import Tensor

from mixprec.compress.solving import Solved, Solver, Task, plain
from mixprec.core.errors import UserError
from mixprec.numerics.formats import GgmlFormat, fitting
from mixprec.numerics.ggml import GgmlQuantized, ggml_type

_PACKAGE = "xllamacpp"
INSTALL = "pip install 'mixprec[llamacpp]' (or pip install --no-deps xllamacpp)"

#: Types that Python's gguf quantizes, to the same bytes as llama.cpp.
_PLAIN: Final = frozenset({"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4"})
#: Types that llama.cpp quantizes alike with and without an importance vector.
_INDIFFERENT: Final = frozenset({"q8_0", "tq1_0", "tq2_0", "mxfp4"})
#: The least importance of an input, relative to the mean: dead inputs make llama.cpp's searches divide by zero.
_FLOOR = 1e-6
#: Weights that are quantized in one call, which bounds float32 copies.
_CHUNK = 2**22


def check_possible(formats: Iterable[object], calibrated: bool) -> None:
    """What ``formats`` need is there: calibration data for some types, the library for most.

    Raises UserError naming the format and the remedy.
    """
    for format in dict.fromkeys(format for format in formats if isinstance(format, GgmlFormat)):
        if format.needs_importance and not calibrated:
            raise UserError(
                f"format {format}: llama.cpp makes it only with an importance vector; add compress.calibration to the "
                "recipe, --text or --traces on the command line, or take q2_k or iq3_xxs"
            )
        if needs_library(format, calibrated):
            _library(str(format))


def needs_library(format: GgmlFormat, calibrated: bool) -> bool:
    """Whether llama.cpp's library has to quantize ``format``."""
    return format.name not in (_INDIFFERENT if calibrated else _PLAIN)


def ggml(weight: Tensor, importance: Tensor | None, format: GgmlFormat) -> GgmlQuantized:
    """Blocks of ``weight`` (out, in), finite, whose rows ``format`` fits.

    importance (in,), finite, not negative: what an error of a column's weights costs; None for llama.cpp's own measure.

    Raises ValueError for rows that don't fit or an importance of another shape, UserError where the library is missing.
    """
    columns = weight.shape[1]
    if not format.fits(columns) or (importance is not None and importance.shape != (columns,)):
        raise ValueError(f"{format} on a weight {tuple(weight.shape)}, importance {getattr(importance, 'shape', None)}")
    vector = None if importance is None else _floored(importance)
    rows = max(1, _CHUNK // columns)
    parts = [_quantize(part.float().cpu().numpy(), vector, format) for part in weight.split(rows)]
    return GgmlQuantized(torch.from_numpy(np.concatenate(parts)), format)


def _floored(importance: Tensor) -> np.ndarray | None:
    """As float32, divided by its mean, nothing near zero; None where all inputs are dead."""
    mean = float(importance.double().mean())
    if mean <= 0:
        return np.ones(len(importance), np.float32)
    return (importance.double() / mean).clamp(min=_FLOOR).float().cpu().numpy()


def _quantize(rows: np.ndarray, importance: np.ndarray | None, format: GgmlFormat) -> np.ndarray:
    kind = ggml_type(format.name)
    if not needs_library(format, importance is not None):
        return np.asarray(gguf.quants.quantize(rows, kind))
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.empty((len(rows), format.row_bytes(rows.shape[1])), np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    written = _library(str(format)).ggml_quantize_chunk(
        int(kind), rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1], pointer
    )
    if written != out.size:
        raise RuntimeError(f"llama.cpp wrote {written} bytes of {format} where {out.size} were expected")
    return out


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    chunk = library.ggml_quantize_chunk
    # type, weights, blocks, first weight, rows, weights of a row, importance
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    chunk.restype = ctypes.c_size_t
    return library


def library_path() -> Path | None:
    """The library of an installed xllamacpp, or None."""
    found = importlib.util.find_spec(_PACKAGE)
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        for pattern in (f"{_PACKAGE}*.so", f"{_PACKAGE}*.pyd"):
            for path in sorted(Path(folder).glob(pattern)):
                return path
    return None


def _library(wanted: str) -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise UserError(f"format {wanted}: llama.cpp's quantizer is not installed; run: {INSTALL}")
    try:
        library = _load(path)
        _check_layout(library, wanted)
    except (OSError, AttributeError) as problem:
        raise UserError(f"format {wanted}: {path} can't be used ({problem}); run: {INSTALL}") from None
    return library


def _check_layout(library: ctypes.CDLL, name: str) -> None:
    """Another llama.cpp could number types otherwise: then nothing may be written."""
    layout = GgmlFormat(name).layout
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    kind = int(ggml_type(name))
    found = (library.ggml_blck_size(kind), library.ggml_type_size(kind))
    if found != (layout.block, layout.bytes):
        raise AttributeError(f"its {name} has blocks of {found[0]} weights in {found[1]} bytes")


def _solve(task: Task) -> Solved:
    format = fitting(task.treatment.format, task.weight.shape[1])  # plans hold what fits, tables of candidates don't
    if not isinstance(format, GgmlFormat):
        return plain(task.weight)
    importance = None if task.given is None else task.given.statistics.hessian.diagonal()
    return task.rounded(ggml(task.weight, importance, format), format)


SOLVER = Solver(_solve)
