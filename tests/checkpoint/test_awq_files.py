"""AWQ: what AutoAWQ's files hold is read, what is written is read by its rules, and what neither holds is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import unpackers
from hypothesis import given
from hypothesis import strategies as st
from plan_made import plan_for
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mixprec.calibration.data import Calibration
from mixprec.checkpoint import awq, holding
from mixprec.checkpoint.compare import diff
from mixprec.checkpoint.convert import convert, plan_of
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint, open_stored
from mixprec.cli import app
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.formats import KEEP, Format
from mixprec.numerics.groupwise import Grid, Quantized, dequantize
from mixprec.plan.schema import Plan

MakeSource = Callable[..., Path]
Planner = Callable[..., Plan]

TOKENS = torch.arange(2, 50).unsqueeze(0)
W4 = Format(4, 32, symmetric=False)


@given(eights=st.integers(1, 5), groups=st.integers(1, 4), width=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_codes_of_any_shape(eights: int, groups: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows, columns = 8 * eights, groups * width
    codes, zeros = (
        torch.randint(0, 16, shape, generator=draw, dtype=torch.uint8) for shape in ((rows, columns), (rows, groups))
    )
    quantized = Quantized(codes, Grid(torch.rand((rows, groups), generator=draw).half() + 0.1, zeros))
    packed = awq.pack_codes(quantized)
    assert packed["qweight"].shape == (columns, eights)
    found = awq.unpack_codes(packed)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.grid.zeros, zeros)  # type: ignore[arg-type]
    expected = dequantize(quantized, Format(4, width, symmetric=False), torch.float64).numpy()
    np.testing.assert_array_equal(unpackers.awq(packed, width), expected)


def autoawq(folder: Path, out: Path, group: int = 32, kept: tuple[str, ...] = (), **said: Any) -> dict[str, np.ndarray]:
    """A copy of a model as AutoAWQ 0.2.9 saves it, packed here as its WQLinear_GEMM.from_linear does; address -> the
    weights that it stands for."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    tensors, weights = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        address = name.removesuffix(".weight")
        if any(part in address for part in kept):
            continue
        weight = tensors.pop(name).double().numpy()
        blocks = weight.reshape(len(weight), -1, group)
        low, high = blocks.min(-1), blocks.max(-1)
        scales = np.maximum(high - low, 1e-5) / 15
        zeros = np.clip(np.round(-low / scales), 0, 15).astype(int)
        scales = scales.astype(np.float16)
        each = np.repeat(scales.astype(float), group, 1), np.repeat(zeros, group, 1)
        codes = np.clip(np.round(weight / each[0]) + each[1], 0, 15).astype(int)
        weights[address] = (codes - each[1]) * each[0]
        tensors[f"{address}.qweight"] = words(codes.T)
        tensors[f"{address}.qzeros"] = words(zeros.T)
        tensors[f"{address}.scales"] = torch.from_numpy(scales.T.copy())
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    usual = {"bits": 4, "group_size": group, "modules_to_not_convert": list(kept) or None, "quant_method": "awq"}
    config["quantization_config"] = usual | {"version": "gemm", "zero_point": True} | said
    (out / "config.json").write_text(json.dumps(config))
    return weights


def words(numbers: np.ndarray) -> torch.Tensor:
    found = np.zeros((numbers.shape[0], numbers.shape[1] // 8), dtype=np.uint32)
    for place, row in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        found |= numbers[:, row::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(found.view(np.int32))


#: What AutoAWQ, transformers 5 and GPTQModel say besides.
WRITERS: dict[str, dict[str, Any]] = {
    "autoawq": {},
    "upper case": {"version": "GEMM"},
    "transformers": {
        "backend": "auto", "format": "gemm", "do_fuse": False, "exllama_config": None, "fuse_max_seq_len": None,
        "modules_to_fuse": None, "desc_act": False, "sym": True, "damp_percent": 0.1, "tokenizer": None,
    },
    "gptqmodel": {
        "checkpoint_format": "gemm", "format": "gemm", "method": "awq", "pack_dtype": "int32", "lm_head": False,
        "dynamic": None, "sym": False, "desc_act": False, "meta": {"quantizer": ["gptqmodel:7.7.0"]},
    },
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_what_others_write_is_read(source: MakeSource, tmp_path: Path, writer: str) -> None:
    folder = source(dtype=torch.float16)
    weights = autoawq(folder, tmp_path / "theirs", kept=("layers.1.mlp",), **WRITERS[writer])
    found = open_checkpoint(tmp_path / "theirs")
    assert found.container == "awq"
    formats = {address: layout.format for address, layout in found.layouts.items()}
    assert {address for address, format in formats.items() if format == W4} == set(weights)
    assert set(formats.values()) == {KEEP, W4}
    for address, expected in weights.items():
        assert torch.equal(found.weight(found.inventory[address], torch.float64), torch.from_numpy(expected))
    loaded = Model(tmp_path / "theirs", dtype="float32").load().model
    for address, expected in weights.items():
        np.testing.assert_array_equal(loaded.get_submodule(address).weight.numpy(), expected.astype(np.float32))
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "theirs")]).output
    assert "awq" in shown and "w4g32_asym" in shown
    stored = open_stored(tmp_path / "theirs").layouts["model.layers.0.mlp.up_proj"]
    assert 8 * stored.bytes / (64 * 96) == 4 + (16 + 4) / 32


@pytest.mark.parametrize("other", ["compressed-tensors", "gptq", "dense"])
def test_it_becomes_another_format_and_itself_again(source: MakeSource, tmp_path: Path, other: str) -> None:
    folder = source(dtype=torch.float16)
    autoawq(folder, tmp_path / "theirs", kept=("down_proj",))
    theirs = open_checkpoint(tmp_path / "theirs")
    convert(theirs, FORMATS[other], tmp_path / "other")
    between = open_checkpoint(tmp_path / "other")
    assert between.container == other
    limit = 1e-3 if other == "dense" else 0  # float16 rounds code times scale
    assert all(found.error <= limit for found in diff(theirs, between).values())
    if other == "dense":
        return
    convert(between, FORMATS["awq"], tmp_path / "again")
    again = open_checkpoint(tmp_path / "again")
    assert plan_of(again).formats == plan_of(theirs).formats
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text"])
def test_folded_scales_come_along(
    source: MakeSource, planner: Planner, tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    """Method awq folds scales into norms and rows of linears: packed and dense, its model is the same."""
    folder = source(architecture, dtype=dtype)
    plan = planner(folder, "w4g32_asym", "awq", last_mlp="keep")
    tokens = torch.randint(2, 300, (4, 24), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tokens, None, {"sources": []}, "digest")
    for name in ("dense", "awq"):
        compress(Model(folder), plan, tmp_path / name, calibration=calibration, format=FORMATS[name])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "awq"))
    folded = "model.layers.0.input_layernorm.weight"
    assert torch.equal(before[folded], after[folded])
    assert not torch.equal(before[folded], load_file(folder / "model.safetensors")[folded])
    kind = str(dtype).removeprefix("torch.")
    dense, packed = (Model(tmp_path / name, dtype=kind).load().model for name in ("dense", "awq"))
    with torch.no_grad():
        assert torch.equal(dense(TOKENS).logits, packed(TOKENS).logits)


def test_kept_modules_by_the_rules_of_every_reader(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    """AutoAWQ, vLLM and SGLang look for parts of names, transformers for beginnings, ends and regular expressions."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    folder = source(num_hidden_layers=12)
    plan = planner(folder, "w4g32_asym", last_mlp="keep", **{"1_up": "keep", "2_q": "keep"})
    said = awq.quantization_config(plan, decoder_of(load_config(str(folder))))
    kept = [address for address, format in plan.formats.items() if format is KEEP]
    assert said["modules_to_not_convert"] == kept
    assert {a for a in plan.formats if any(re.match(p.removeprefix("-:"), a) for p in said["dynamic"])} == set(kept)
    for address in plan.formats:
        assert any(name in address for name in kept) == (address in kept)
        assert should_convert_module(address, kept) == (address not in kept)
    everything = awq.quantization_config(planner(folder, "w4g32_asym"), decoder_of(load_config(str(folder))))
    assert everything["modules_to_not_convert"] is None
    assert "dynamic" not in everything


@pytest.mark.parametrize(
    ("default", "rules", "message"),
    [
        ("w4g32", {}, "w4g32: AWQ's layout has 4 bits with zero points; take w4g32_asym, or keep it"),
        ("w3g32_asym", {}, "w3g32_asym: AWQ's layout has 4 bits with zero points; take w4g32_asym"),
        ("w4g32_asym", {"1_q": "w4g16_asym"}, "q_proj: w4g16_asym: AWQ has one group size for all .* most have 32"),
        ("w4g32_asym", {"1_up": "w4_asym"}, "up_proj: w4_asym: AWQ has one group size"),
        ("w4g32_asym", {"embedding": "w8g32"}, "w8g32: AWQ's readers take no packed embedding; keep it"),
        ("w4g32_asym", {"head": "w4g32_asym"}, "AWQ's readers take no packed head; keep it"),
        ("w4g48_asym", {}, "groups of 48 do not divide 64 columns"),
    ],
)
def test_what_it_cannot_hold(
    source: MakeSource, planner: Planner, tmp_path: Path, default: str, rules: dict[str, str], message: str
) -> None:
    folder = source(tie_word_embeddings=False)
    with pytest.raises(UserError, match=message):
        compress(Model(folder), planner(folder, default, **rules), tmp_path / "out", format=FORMATS["awq"])
    assert not (tmp_path / "out").exists()


def test_rows_that_fill_no_words(source: MakeSource, planner: Planner) -> None:
    folder = source(intermediate_size=100)
    found = holding.awq(planner(folder, "w4g4_asym"), decoder_of(load_config(str(folder))))
    assert {address.rpartition(".")[2] for address in found} == {"gate_proj", "up_proj"}
    assert "AWQ packs rows by 8, the matrix has 100" in next(iter(found.values()))


def test_whole_rows_beside_groups_of_their_width(source: MakeSource, planner: Planner) -> None:
    """64 columns: groups of 64 are whole rows there, and halves of the 128 of down."""
    folder = source(intermediate_size=128)
    decoder = decoder_of(load_config(str(folder)))
    plan = planner(folder, "w4g64_asym", **{"1_up": "w4_asym"})
    assert not holding.awq(plan, decoder)
    assert awq.quantization_config(plan, decoder)["group_size"] == 64
    rows = planner(folder, "w4_asym")
    assert not holding.awq(rows, decoder)
    assert awq.quantization_config(rows, decoder)["group_size"] == -1


def test_a_kept_name_that_begins_a_packed_one(source: MakeSource, planner: Planner) -> None:
    folder = source()
    decoder = decoder_of(load_config(str(folder)))
    plan = planner(folder, "w4g32_asym", **{"1_up": "keep"})
    lines = {a.replace("0.mlp.up_proj", "0.mlp.gate"): line for a, line in plan.modules.items()}
    renamed = Plan.model_construct(model=plan.model, method="rtn", modules=lines)
    shorter = decoder.linears[decoder.linears.index(decoder["model.layers.0.mlp.up_proj"])]
    object.__setattr__(shorter, "address", "model.layers.0.mlp.gate")
    found = holding.awq(renamed, decoder)
    assert list(found) == ["model.layers.0.mlp.gate_proj"]
    assert "its name begins with model.layers.0.mlp.gate; keep both or none" in found["model.layers.0.mlp.gate_proj"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"version": "gemv"}, r"config\.json: quantization_config\.version: quantized already by AWQ, gemv, 4 bits, which"),
    (
        {"version": "gemv_fast"},
        "quantized already by AWQ, gemv_fast, 4 bits, which is not read here; give the original",
    ),
    ({"version": "marlin"}, "quantized already by AWQ, marlin"),
    ({"backend": "llm-awq"}, r"config\.json: quantization_config\.backend: quantized already by AWQ"),
    ({"checkpoint_format": "gemv"}, r"quantization_config\.checkpoint_format: quantized already by AWQ"),
    ({"bits": 8}, r"quantization_config: .*\n?.*bits: 8"),
    ({"zero_point": False}, "zero_point: False"),
    ({"lm_head": True}, "lm_head: True"),
    ({"new_key": 1}, "new_key: unknown key"),
    ({"dynamic": {"+:.*": {"bits": 3}}}, "dynamic: .* gives modules another grid"),
    ({"dynamic": {"-:.*up_proj": {}}}, r"does not mean model\.layers\.0\.mlp\.up_proj, which is packed"),
    ({"quant_method": "something_new"}, r"quantization_config\.quant_method: quantized already by something_new"),
    ({"quant_method": "gptq", "zero_point": None, "modules_to_not_convert": None, "version": None}, "unknown key"),
    ({"group_size": 16}, r"q_proj\.qzeros is 2 x 8, config\.json asks for 4 x 8"),
    ({"modules_to_not_convert": ["mlp"]}, r"does not mean model\.layers\.0\.mlp\.gate_proj, which is packed"),
]


@pytest.mark.parametrize(("said", "message"), REFUSED)
def test_what_is_not_understood_is_refused(
    source: MakeSource, tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    autoawq(source(dtype=torch.float16), tmp_path / "theirs", **said)
    with pytest.raises(UserError, match=message):
        _ = open_checkpoint(tmp_path / "theirs").layouts


def test_codes_that_only_look_like_those_of_gptq(source: MakeSource, tmp_path: Path) -> None:
    """What config.json calls GPTQ has its shapes, or is refused: the same names lie otherwise."""
    folder = source(dtype=torch.float16)
    autoawq(folder, tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"q_proj\.qweight is 64 x 8, config\.json asks for 8 x 64"):
        _ = open_checkpoint(tmp_path / "theirs").layouts


def test_the_card_says_that_it_is_awq(source: MakeSource, tmp_path: Path) -> None:
    folder = source()
    compress(Model(folder), plan_for(folder, "w4g32_asym"), tmp_path / "out", format=FORMATS["awq"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"tags:\n- mixprec\n- awq\n- 4-bit\n", card)
