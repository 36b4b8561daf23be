"""The ``gguf`` format: one file that llama.cpp and transformers load, each module in a type of its own.

What is in llama.cpp's types goes into it as it is, integer formats in a type that holds their grids exactly, what is
kept and pruned in the source's own type, norms and biases in float32, as llama.cpp wants them. One tensor is in memory
at a time. config.json and the tokenizer lie beside the file, for transformers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint.base import CheckpointFormat, Finish, Held
from mixprec.checkpoint.fewer import left
from mixprec.checkpoint.gguf import tokenizer
from mixprec.checkpoint.gguf.holding import problems
from mixprec.checkpoint.gguf.tensors import PACKED, Entry, entries, left_out, predicted
from mixprec.checkpoint.said import Said
from mixprec.checkpoint.shards import CONFIG, described
from mixprec.checkpoint.target import CompressedModule
from mixprec.core import publish
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.models.complete import is_passed_over
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.gguf import metadata, mixtures
from mixprec.models.gguf.names import ARCHITECTURES, gguf_names
from mixprec.models.locate import at_hand
from mixprec.models.maps import decoder_of
from mixprec.models.source import FLOATS, Source
from mixprec.models.tensors import COMPUTABLE
from mixprec.numerics.formats import KEEP, AnyFormat, Format, GgmlFormat
from mixprec.numerics.ggml import GgmlQuantized, exact_type, from_grid
from mixprec.numerics.groupwise import Quantized
from mixprec.numerics.plain import Plain
from mixprec.plan.schema import Plan

FILE = "model.gguf"
_ALIGNMENT: Final[int] = gguf.GGUF_DEFAULT_ALIGNMENT
#: Bytes of tokens, their types and merges for each token, where the tokenizer is not at hand.
_TOKEN_BYTES = 36


def check(source: Source, config: PretrainedConfig) -> None:
    """llama.cpp knows the source's tokenizer and all of its tensors; what it computes otherwise is said.

    Raises UserError.
    """
    if told := mixtures.note(config):
        console.print(f"{source.folder}: {told}", markup=False)
    tokenizer.read(source.folder)
    tokenizer.head_of(source.folder, config)
    names, decoder = gguf_names(config), decoder_of(config)
    for name, info in source.tensors.items():
        if left_out(name, decoder) or (name not in decoder.shapes and is_passed_over(name, decoder)):
            continue
        if name not in names:
            raise UserError(f"{source.folder}: {name}: llama.cpp's {config.model_type} has no such tensor")
        if info.dtype not in (FLOATS if len(info.shape) > 1 else COMPUTABLE):
            raise UserError(f"{source.folder}: {name} is stored as {info.dtype}, which GGUF files don't hold")


def pack(module: CompressedModule, plan: Plan) -> dict[str, Tensor]:
    """The packed rows of a module under a name that says their type; of a pruned module its weight.

    Raises UserError for scales beyond float16.
    """
    quantized, address = module.quantized, module.weight_name.removesuffix(".weight")
    if isinstance(quantized, Quantized):
        assert isinstance(module.format, Format)
        kind = exact_type(module.format, quantized.codes.shape[1])
        assert kind is not None  # problems() refuses all others
        held = from_grid(quantized, module.format, kind)
        if held is None:
            raise UserError(f"{module.weight_name}: has scales beyond float16, which llama.cpp can't hold; keep it")
        quantized = held
    if isinstance(quantized, GgmlQuantized):
        return {f"{address}{PACKED}{quantized.format}": quantized.data}
    return {module.weight_name: module.restored}


def read(module: Linear, tensors: Mapping[str, Tensor], format: AnyFormat, by: Plan | Said | None) -> Held:
    """What ``pack``'s tensors hold."""
    for name, data in tensors.items():
        address, packed, kind = name.partition(PACKED)
        if packed and address == module.address:
            return Held(GgmlQuantized(data, GgmlFormat(kind)), GgmlFormat(kind))
    return Held(Plain(tensors[module.weight_name]), KEEP)


def size(plan: Plan, inventory: Decoder, config: PretrainedConfig) -> int:
    """Bytes of the file. Exact where the tokenizer lies on this machine, else its vocabulary is estimated."""
    tensors = list(predicted(*left(plan, inventory, config)))
    folder = at_hand(config)
    if folder is not None and not (folder / "tokenizer.json").is_file():
        folder = None
    with tempfile.TemporaryDirectory() as scratch:
        writer = _writer(Path(scratch) / FILE, tensors, config, folder, head=())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        head = (Path(scratch) / FILE).stat().st_size
    if folder is None:
        head += config.vocab_size * _TOKEN_BYTES
    return _padded(head) + sum(_padded(entry.bytes) for entry in tensors)


def _padded(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def finish(job: Finish) -> None:
    """Write the file from the finished blocks and the source, and put config.json beside it."""
    tensors = list(entries(job))
    head = tokenizer.head_of(job.source.folder, job.config)
    writer = _writer(job.folder / FILE, tensors, job.config, job.source.folder, head)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in tensors:
            data: Any = _Data(entry)
            writer.write_tensor_data(data)
    finally:
        writer.close()
    publish.share(job.folder / FILE)
    publish.write_json(job.folder / CONFIG, described(job, {}))


def _writer(
    path: Path,
    entries: list[Entry],
    config: PretrainedConfig,
    tokenizer_folder: Path | None,
    head: Sequence[int],
) -> gguf.GGUFWriter:
    """A writer with metadata, tokenizer and the tensors' names, types and shapes."""
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    metadata.add(writer, config, Path(config.name_or_path or config.model_type).name)
    if tokenizer_folder is not None:
        tokenizer.add(writer, tokenizer_folder, config, head)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, raw_dtype=entry.kind)
    return writer


class _Data:
    """What the package's writer wants of an array: its bytes, written one expert after another."""

    def __init__(self, entry: Entry) -> None:
        self._entry, self.nbytes = entry, entry.bytes

    def tofile(self, file: BinaryIO) -> None:
        """Write all of it. Raises ValueError where it has another size than the header says."""
        written = 0
        for tensor in self._entry.load():
            data = tensor.contiguous().view(torch.uint8).numpy()
            written += data.nbytes
            data.tofile(file)
        if written != self.nbytes:
            raise ValueError(f"{self._entry.name}: {written} bytes, {self.nbytes} were announced")


GGUF = CheckpointFormat(
    name="gguf",
    problems=problems,
    pack=pack,
    read=read,
    quantization_config=lambda plan, inventory: None,
    bytes=size,
    finish=finish,
    check=check,
)
