"""llama.cpp's own quantizer: a GGUF file in 16 bits becomes one of its mixtures of types, with an importance matrix."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

FILE = "model.gguf"
#: Belongs to the file that mixprec wrote.
CARD = "mixprec.json"


def load(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensor's name -> mean squares of its inputs, from a file as llama-imatrix writes them."""
    tensors = {each.name: each.data for each in gguf.GGUFReader(job["imatrix"]).tensors}
    ends = ".in_sum2", ".counts"
    names = [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]
    return {name: (tensors[name + ends[0]] / tensors[name + ends[1]]).ravel().astype(np.float32) for name in names}


def quantize(importance: dict[str, np.ndarray], job: dict[str, Any]) -> dict[str, Any]:
    """Write the folder ``out``: the mixture's file, and what lies beside the source's."""
    source, out = Path(job["model"]), Path(job["out"])
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(FILE, CARD))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = int(job.get("threads", 1))
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{job['mixture'].upper()}")
    known = list(importance.items())
    rows = (llama_cpp.llama_model_imatrix_data * (len(known) + 1))()  # the last one, without a name, ends the list
    for row, (name, values) in zip(rows, known, strict=False):
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = rows
    if llama_cpp.llama_model_quantize(str(source / FILE).encode(), str(part / FILE).encode(), parameters):
        raise SystemExit(f"llama.cpp could not make {job['mixture']}")
    part.rename(out)
    types = {each.name: each.tensor_type.name.lower() for each in gguf.GGUFReader(out / FILE).tensors}
    return {"mixture": job["mixture"], "types": types}
