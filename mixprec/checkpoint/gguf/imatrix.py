"""llama.cpp's importance matrix as a file: for every input of every linear the sum of its squares over the tokens.

``llama-quantize --imatrix`` reads it; it weighs the error of a weight by the mean square of its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.core import publish
from mixprec.core.errors import UserError
from mixprec.models.gguf.names import ARCHITECTURES, MIXTURES, gguf_names

_SUMS, _COUNTS = ".in_sum2", ".counts"


def check_names(config: PretrainedConfig) -> None:
    """Raises UserError for an architecture whose tensors have no known names in llama.cpp."""
    known = [kind for kind in ARCHITECTURES if kind not in MIXTURES]
    if config.model_type not in known:
        raise UserError(f"model.id: importance matrices are written of {', '.join(known)}, not of {config.model_type}")


def write_imatrix(
    path: Path,
    squares: Mapping[str, Tensor],
    config: PretrainedConfig,
    *,
    tokens: int,
    chunk: int,
    datasets: Sequence[str],
) -> None:
    """Write ``squares``, a module's address -> means of x_j² (in,) over ``tokens`` tokens.

    ``chunk``: tokens that went through the model at once; ``datasets``: where they come from, for the reader.
    Raises UserError as check_names does, and where the file can't be written.
    """
    check_names(config)
    names = gguf_names(config)
    sums = {names[f"{address}.weight"]: mean.double() * tokens for address, mean in squares.items()}
    with publish.atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
        writer.kv_data[0].pop(gguf.Keys.General.ARCHITECTURE)  # llama-imatrix's files have none
        writer.add_type("imatrix")  # this name and those of its keys are in the package from 0.18 on alone
        writer.add_array("imatrix.datasets", list(datasets))
        writer.add_uint32("imatrix.chunk_count", -(-tokens // chunk))
        writer.add_uint32("imatrix.chunk_size", chunk)
        for name, total in sorted(sums.items()):
            writer.add_tensor(name + _SUMS, total.float().cpu().numpy()[None])
            writer.add_tensor(name + _COUNTS, np.array([[tokens]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
