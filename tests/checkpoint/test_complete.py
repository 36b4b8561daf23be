"""A checkpoint is its model, whole: what is missing or unread is refused by all that read it, tying is the tensors'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_made import plan_for
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mixprec.checkpoint.compare import diff
from mixprec.checkpoint.convert import convert
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.compress.spectra import alphas
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.core.headers import BITS
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.models.source import open_source
from mixprec.plan import bits

MakeSource = Callable[..., Path]
Tensors = dict[str, Tensor]
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Q_BIAS, UP = "model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.weight"
MORE = "model.layers.2.input_layernorm.weight"
TOKENS = torch.arange(2, 40)[None]

#: Formats that hold symmetric grids of 4 bits; AWQ's have zero points, MLX's files have offsets.
HOLDING = {name: format for name, format in FORMATS.items() if name not in ("awq", "mlx")}


def edit(folder: Path, change: Callable[[Tensors], Tensors | None], **config: Any) -> Path:
    """Change the tensors of a folder with one file, and keys of its configuration."""
    tensors = load_file(folder / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    return folder


def readers(folder: Path, out: Path) -> dict[str, Callable[[], object]]:
    """All that read a checkpoint."""

    def write(format: str) -> Callable[[], object]:
        return lambda: compress(Model(folder), plan_for(folder, "w4g32"), out / format, format=FORMATS[format])

    return {
        "load": lambda: Model(folder).load(),
        "blocks": lambda: Model(folder).open_blocks(),
        "inspect": lambda: open_checkpoint(folder),
        "diff": lambda: diff(open_checkpoint(folder), open_checkpoint(folder)),
        "convert": lambda: convert(open_checkpoint(folder), FORMATS["gptq"], out / "converted"),
        "spectra": lambda: alphas(Model(folder)),
        **{format: write(format) for format in FORMATS},
    }


def drop(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def add(name: str, size: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.ones(size)}


def renamed(pattern: str, by: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, by, key): tensor for key, tensor in tensors.items()}


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors | None], dict[str, Any], str]] = {
    "a weight is missing": (drop(UP), {}, f"missing weights: 1, first {UP}"),
    "a norm is missing": (drop(NORM), {}, f"missing weights: 1, first {NORM}"),
    "the embedding is missing": (drop(EMBEDDING), {}, f"missing weights: 1, first {EMBEDDING}"),
    "the head is missing": (drop(HEAD), {}, rf"first {HEAD}; config\.json says that the head is not tied"),
    "only the head of a tied pair": (drop(EMBEDDING), {"tie_word_embeddings": True}, f"weights: 1, first {EMBEDDING}"),
    "a bias that nobody reads": (add(Q_BIAS, 64), {}, f"tensors that llama does not read: 1, first {Q_BIAS}"),
    "a third layer": (add(MORE, 64), {}, f"tensors that llama does not read: 1, first {MORE}"),
    "another shape of a norm": (add(NORM, 63), {}, r"has the shape \(63,\), config\.json asks for \(64,\)"),
    "fewer layers configured": (add(NORM, 64), {"num_hidden_layers": 1}, "tensors that llama does not read: 9"),
    "names of the base model": (
        renamed(r"^model\.", ""),
        {"architectures": ["LlamaModel"]},
        r"its tensors have other names: embed_tokens\.weight is model\.embed_tokens\.weight in this architecture",
    ),
    "names of a larger model": (
        renamed("^", "language_model."), {}, r"other names: language_model\.\S+ is \S+ in this architecture",
    ),
    "a text tower": (
        renamed(r"^model\.", "model.language_model."), {}, r"names: model\.language_model\.\S+ is model\.\S+ in this",
    ),
    "Falcon's names": (renamed(r"^model\.", "transformer.h."), {}, "other names: transformer.h.layers"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_incomplete_or_unread_is_refused_by_all_readers(source: MakeSource, tmp_path: Path, fault: str) -> None:
    change, config, message = FAULTS[fault]
    folder = edit(source(), change, **config)
    for name, read in readers(folder, tmp_path / "out").items():
        with pytest.raises(UserError, match=message):
            pytest.fail(f"{name}: {read()}")
    assert not (tmp_path / "out").exists()


def test_shards_of_two_models(source: MakeSource) -> None:
    folder = source(shard="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    stale = load_file(shards[0]) | load_file(shards[1])
    save_file(stale, shards[1], metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=rf"is in {shards[0].name} and in {shards[1].name}; fetch the shards of one model"
    ):
        open_source(folder)
    save_file(stale, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"both model\.safetensors and model\.safetensors\.index\.json"):
        Model(folder).load()


def test_buffers_that_models_compute_pass_through_and_are_told(source: MakeSource, tmp_path: Path) -> None:
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(8),
        "model.rotary_emb.inv_freq": torch.arange(8),
    }
    folder = edit(source(), lambda t: t.update(buffers))
    assert Model(folder).load().notes == (
        "2 tensors are computed from config.json, not read, such as model.layers.0.self_attn.rotary_emb.inv_freq",
    )
    compress(Model(folder), plan_for(folder, "w4g32"), tmp_path / "out", format=FORMATS["gptq"])
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in buffers.items())
    assert Model(tmp_path / "out").load().notes == Model(folder).load().notes


def tied(folder: Path, *, head: bool, config: bool) -> Path:
    """The file holds a ``head`` of its own; the configuration says that it is tied."""

    def change(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[HEAD] if head else tensors[EMBEDDING].clone()

    return edit(folder, change, tie_word_embeddings=config)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def test_a_head_of_its_own_is_one_whatever_config_json_says(source: MakeSource, tmp_path: Path) -> None:
    folder = tied(source(dtype=torch.float16), head=True, config=True)
    config = load_config(str(folder))
    assert config.tie_word_embeddings is False
    inventory, plan = decoder_of(config), plan_for(folder, "w4g32")
    assert inventory.other[HEAD] == inventory.other[EMBEDDING]
    whole = Model(folder, dtype="float16").load().model
    assert not torch.equal(whole.lm_head.weight, whole.model.embed_tokens.weight)
    streamed = Model(folder, dtype="float16").open_blocks().model
    assert torch.equal(streamed.lm_head.weight, whole.lm_head.weight)
    found = {}
    for name, format in HOLDING.items():
        out = tmp_path / name
        compress(Model(folder), plan, out, format=format)
        files = [path for path in out.iterdir() if path.suffix in (".safetensors", ".gguf")]
        assert sum(path.stat().st_size for path in files) == format.bytes(plan, inventory, config)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        found[name] = logits(Model(out, dtype="float16").load().model)
        assert torch.equal(found[name], found["dense"])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float16)
    assert torch.equal(logits(theirs), found["dense"])
    alone = Model(tmp_path / "gguf" / "model.gguf", dtype="float16").load().model
    assert torch.equal(logits(alone), found["dense"])


def test_an_equal_head_is_the_embedding(source: MakeSource, tmp_path: Path) -> None:
    folder = tied(source(), head=False, config=True)
    config = load_config(str(folder))
    assert config.tie_word_embeddings is True
    inventory, plan = decoder_of(config), plan_for(folder, "w4g32")
    assert HEAD not in inventory.other
    assert bits.account(plan, inventory).dense_bytes == 2 * (
        sum(module.weights for module in inventory.linears) + sum(inventory.other.values())
    )
    for name, format in HOLDING.items():
        compress(Model(folder), plan, tmp_path / name, format=format)
        files = [path for path in (tmp_path / name).iterdir() if path.suffix in (".safetensors", ".gguf")]
        assert sum(path.stat().st_size for path in files) == format.bytes(plan, inventory, config)
    assert (tmp_path / "dense" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert HEAD not in open_checkpoint(tmp_path / "gguf").file.tensors  # type: ignore[attr-defined]


def test_a_head_that_changes_is_looked_at_again(source: MakeSource) -> None:
    folder = tied(source(), head=False, config=True)
    assert load_config(str(folder)).tie_word_embeddings is True
    edit(folder, lambda t: t.update({HEAD: t[HEAD] + 1}))
    assert load_config(str(folder)).tie_word_embeddings is False


def odd(dtype: torch.dtype, *shape: int) -> Tensor:
    """Bits of all kinds in a type, none of them NaN or infinite in float8."""
    if dtype is torch.bool:
        return torch.arange(shape[0] * shape[1]).reshape(shape) % 3 == 0
    count = shape[0] * shape[1] * dtype.itemsize
    raw = (torch.arange(count) % 60).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


ODD = [
    torch.float64, torch.complex64, torch.int64, torch.uint64, torch.int32, torch.uint32, torch.int16, torch.uint16,
    torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_what_is_not_compressed_passes_through_in_any_type(
    source: MakeSource, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = source(shard="1GB")
    shape = (384, 32 if dtype is torch.float4_e2m1fn_x2 else 64)  # two of these in a byte
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    strange = {EMBEDDING: odd(dtype, rows, shape[1]), buffer: odd(dtype, 1, 8)}
    edit(folder, lambda t: t.update(strange))
    plan, config = plan_for(folder, "w4g32"), load_config(str(folder))
    raw = (folder / "model.safetensors").read_bytes()
    for name in ("dense", "compressed-tensors", "gptq"):
        out = tmp_path / name
        compress(Model(folder), plan, out, format=FORMATS[name])
        predicted = FORMATS[name].bytes(plan, decoder_of(config), config)
        assert (out / "model.safetensors").stat().st_size == predicted
        for tensor in strange:
            assert stored(out / "model.safetensors", tensor) == stored(folder / "model.safetensors", tensor)
    assert (folder / "model.safetensors").read_bytes() == raw
    info = open_source(folder).tensors[EMBEDDING]
    assert info.bytes == len(stored(folder / "model.safetensors", EMBEDDING)[1])
    if dtype in (torch.float64, torch.float8_e4m3fn, torch.float8_e5m2):
        assert Model(folder).load().model.dtype is torch.float32
    else:
        with pytest.raises(UserError, match=rf"{EMBEDDING} is stored as \w+; computed with are F16, BF16, F32, F64"):
            Model(folder).load()
        with pytest.raises(UserError, match=rf"{EMBEDDING} is stored as \w+; computed with"):
            Model(folder).open_blocks()
    with pytest.raises(UserError, match=rf"{EMBEDDING} is stored as \w+, which GGUF files"):
        compress(Model(folder), plan, tmp_path / "gguf", format=FORMATS["gguf"])


def stored(path: Path, name: str) -> tuple[Any, bytes]:
    """Type and shape of a tensor in a file's header, and its bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])[name]
    first, last = entry.pop("data_offsets")
    return entry, data[start + first : start + last]


def test_sizes_of_all_types(tmp_path: Path) -> None:
    """The table has every type that can be written, in the order in which files have them."""
    save_file(
        {str(dtype): odd(dtype, 4, 8) for dtype in [*ODD, torch.float32, torch.float16, torch.bfloat16]}, tmp_path / "a"
    )
    data = (tmp_path / "a").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    entries = sorted((entry for entry in header.values()), key=lambda entry: entry["data_offsets"])
    assert [entry["dtype"] for entry in entries] == [name for name in BITS if not name.startswith("F6_")]
    for entry in entries:
        first, last = entry["data_offsets"]
        assert last - first == entry["shape"][0] * entry["shape"][1] * BITS[entry["dtype"]] // 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_linear_weights_in_other_types_are_refused(source: MakeSource, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = edit(source(), lambda t: t.update({UP: torch.ones(96, 64, dtype=dtype)}))
    for name in ("dense", "gguf"):
        with pytest.raises(UserError, match=rf"{UP} is stored as \w+; weights must be F16, BF16, F32"):
            compress(Model(folder), plan_for(folder, "w4g32"), tmp_path / "out", format=FORMATS[name])
