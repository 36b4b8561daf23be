"""The ``gguf`` format: one file that llama.cpp and transformers load, each module in a type of its own.

Modules in llama.cpp's types go into it as they are, integer formats in a type that holds their grids exactly, kept and
pruned modules and the embedding in the source's own type, norms and biases in float32, as llama.cpp wants them. One
tensor is in memory at a time. config.json and the tokenizer lie beside the file, for transformers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec import artifacts, models, modules
from mixprec.checkpoint.base import CheckpointFormat, Finish
from mixprec.checkpoint.gguf import metadata, tokenizer
from mixprec.checkpoint.gguf.names import gguf_names, reordered
from mixprec.checkpoint.source import Source, check_finite
from mixprec.checkpoint.target import CompressedModule
from mixprec.errors import UserError
from mixprec.modules import Inventory, LinearModule
from mixprec.numerics.formats import GGML, CodebookFormat, Format, GgmlFormat, Keep
from mixprec.numerics.ggml import GgmlQuantized, dequantize_ggml, exact_type, from_grid, ggml_type
from mixprec.numerics.groupwise import Quantized
from mixprec.plan.schema import Plan

FILE = "model.gguf"
#: Behind a module's address in a block's file: the type of its packed rows.
_PACKED = ".ggml_"
_DTYPES: Final = {
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
    torch.float32: gguf.GGMLQuantizationType.F32,
}
_BY_NAME: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
#: Bytes of tokens, their types and merges for each token, where the tokenizer is not at hand.
_TOKEN_BYTES = 36


class Entry(NamedTuple):
    """One tensor of the file: its name there, ``shape`` in weights, type, and where its rows come from."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    load: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Bytes of its data, without what fills it up."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


def problems(plan: Plan, inventory: Inventory, config: PretrainedConfig) -> dict[str, str]:
    """Address -> why no GGUF file can hold it; what concerns the whole model stands at its first module."""
    found = {}
    for module in inventory.linears:
        treatment = plan.treatments[module.address]
        format, columns = treatment.format, module.in_features
        if isinstance(format, CodebookFormat):
            found[module.address] = f"{format}: llama.cpp has no code books per row; {_nearest(format.bits, columns)}"
        elif isinstance(format, Format) and exact_type(format, columns) is None:
            found[module.address] = (
                f"{format}: no type of llama.cpp holds these grids exactly, which takes groups of a multiple of 32 and "
                f"at most 8 bits, 7 with zero points; {_nearest(format.bits, columns)}"
            )
    general = metadata.problem(config)
    return {inventory.linears[0].address: general} if general else found


def _nearest(bits: float, columns: int) -> str:
    near = sorted(GGML, key=lambda name: abs(GgmlFormat(name).bits - bits))
    names = [name for name in near if GgmlFormat(name).fits(columns)][:3]
    return f"with method ggml the nearest are {', '.join(names)}" if names else "keep it"


def check(source: Source, config: PretrainedConfig) -> None:
    """The source has a tokenizer that llama.cpp knows, and no tensor that the file has no name for.

    Raises UserError.
    """
    tokenizer.read(source.folder)
    names = gguf_names(config)
    for name in source.tensors:
        if name not in names and not _left_out(name, config):
            raise UserError(f"{source.folder}: {name}: llama.cpp's {config.model_type} has no such tensor")


def _left_out(name: str, config: PretrainedConfig) -> bool:
    """Tensors that are computed, or stored twice."""
    tied = config.tie_word_embeddings and name == f"{modules.HEAD}.weight"
    return tied or name.endswith("rotary_emb.inv_freq")


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
        return {f"{address}{_PACKED}{quantized.format}": quantized.data}
    return {module.weight_name: module.restored}


def restore(module: LinearModule, tensors: Mapping[str, Tensor], plan: Plan, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that ``pack``'s tensors stand for."""
    for name, data in tensors.items():
        address, packed, kind = name.partition(_PACKED)
        if packed and address == module.address:
            return dequantize_ggml(GgmlQuantized(data, GgmlFormat(kind)), dtype)
    return tensors[module.weight_name].to(dtype)


def size(plan: Plan, inventory: Inventory, config: PretrainedConfig) -> int:
    """Bytes of the file. Exact where the tokenizer lies on this machine, else its vocabulary is estimated."""
    entries = list(_predicted(plan, inventory, config))
    folder = _folder(config)
    with tempfile.TemporaryDirectory() as scratch:
        writer = _writer(Path(scratch) / FILE, entries, config, folder)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        head = (Path(scratch) / FILE).stat().st_size
    if folder is None:
        head += config.vocab_size * _TOKEN_BYTES
    return _padded(head) + sum(_padded(entry.bytes) for entry in entries)


def _folder(config: PretrainedConfig) -> Path | None:
    """Where the tokenizer of a configuration lies, if it does here."""
    try:
        folder = Path(models.resolve(config.name_or_path))
    except UserError:
        return None
    return folder if (folder / "tokenizer.json").is_file() else None


def _padded(count: int) -> int:
    return -(-count // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT


def _predicted(plan: Plan, inventory: Inventory, config: PretrainedConfig) -> Iterator[Entry]:
    """The file's tensors from the configuration alone."""
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    linears = {module.weight_name: module for module in inventory.linears}
    for name, known in gguf_names(config).items():
        if name in linears:
            module = linears[name]
            format = plan.formats[module.address]
            if isinstance(format, Format):
                format = exact_type(format, module.in_features) or format
            kind = ggml_type(format.name) if isinstance(format, GgmlFormat) else _DTYPES[stored]
            yield Entry(known, (module.out_features, module.in_features), kind, _nothing)
        elif name in inventory.other:
            matrix = name.startswith((modules.EMBEDDING, modules.HEAD))
            count = inventory.other[name]
            shape = (count // config.hidden_size, config.hidden_size) if matrix else (count,)
            yield Entry(known, shape, _DTYPES[stored if matrix else torch.float32], _nothing)
    yield from _rope(config)


def _nothing() -> Tensor:
    raise NotImplementedError("a predicted tensor has no data")


def _rope(config: PretrainedConfig) -> Iterator[Entry]:
    factors = metadata.rope_factors(config)
    if factors is not None:
        yield Entry(metadata.ROPE_TENSOR, tuple(factors.shape), gguf.GGMLQuantizationType.F32, lambda: factors)


def finish(job: Finish) -> None:
    """Write the file from the finished blocks and the source, and put config.json beside it."""
    entries = list(_entries(job))
    writer = _writer(job.folder / FILE, entries, job.config, job.source.folder)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(_array(entry))
    finally:
        writer.close()
    artifacts.share(job.folder / FILE)
    shutil.copyfile(job.source.folder / "config.json", job.folder / "config.json")


def _writer(
    path: Path, entries: list[Entry], config: PretrainedConfig, tokenizer_folder: Path | None
) -> gguf.GGUFWriter:
    """A writer with metadata, tokenizer and the tensors' names, types and shapes."""
    architecture = metadata.ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    metadata.add(writer, config, Path(config.name_or_path or config.model_type).name)
    if tokenizer_folder is not None:
        tokenizer.add(writer, tokenizer_folder, config)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, raw_dtype=entry.kind)
    return writer


def _array(entry: Entry) -> np.ndarray:
    """The bytes of a tensor."""
    tensor = entry.load().contiguous()
    data: np.ndarray = tensor.view(torch.uint8).numpy()
    return data


def _entries(job: Finish) -> Iterator[Entry]:
    """The file's tensors in llama.cpp's order, those that changed from the blocks' files."""
    changed: dict[str, tuple[Path, str]] = {}
    for file in job.blocks:
        with artifacts.open_tensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (no mapping)
                address, packed, _ = key.partition(_PACKED)
                changed[f"{address}.weight" if packed else key] = (file, key)
    for name, known in gguf_names(job.config).items():
        if name not in job.source.tensors or _left_out(name, job.config):
            continue
        info = job.source.tensors[name]
        file, key = changed.get(name, (job.source.folder / info.shard, name))
        kind = _kind(key, info.dtype, len(info.shape))
        yield Entry(known, info.shape, kind, _loader(file, key, name, kind, job.config))
    yield from _rope(job.config)


def _kind(key: str, dtype: str, dimensions: int) -> gguf.GGMLQuantizationType:
    _, packed, kind = key.partition(_PACKED)
    if packed:
        return ggml_type(kind)
    return _DTYPES[_BY_NAME[dtype] if dimensions > 1 else torch.float32]


def _loader(
    file: Path, key: str, name: str, kind: gguf.GGMLQuantizationType, config: PretrainedConfig
) -> Callable[[], Tensor]:
    def load() -> Tensor:
        with artifacts.open_tensors(file) as opened:
            tensor: Tensor = opened.get_tensor(key)
        check_finite(f"{file}: {key}", tensor)
        rows = reordered(name, tensor, config)
        return rows.float() if kind == gguf.GGMLQuantizationType.F32 else rows

    return load


GGUF = CheckpointFormat(
    name="gguf",
    problems=problems,
    pack=pack,
    restore=restore,
    quantization_config=lambda plan, inventory: None,
    bytes=size,
    finish=finish,
)
