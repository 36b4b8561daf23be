"""MLX: what mlx-lm's files hold is read, what is written lies as its kernels want it, and all else is refused."""

from __future__ import annotations

import json
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
from tiny import TEXT
from typer.testing import CliRunner

from mixprec.checkpoint import mlx
from mixprec.checkpoint.compare import diff
from mixprec.checkpoint.convert import convert
from mixprec.checkpoint.convert import plan_for as converted_plan
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint, open_stored
from mixprec.checkpoint.target import CompressedModule
from mixprec.cli import app
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.affine import AffineQuantized, dequantize_affine
from mixprec.numerics.formats import KEEP, AffineFormat, Format
from mixprec.numerics.groupwise import Grid, Quantized, dequantize, quantize
from mixprec.plan.schema import Plan

MakeSource = Callable[..., Path]
Planner = Callable[..., Plan]

UP, Q = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"
#: Every width, symmetric, with zero points and with offsets; embedding and head too.
MIXED = {
    "1_q": "w3g32_asym", "1_k": "w5g32", "1_v": "w6g64", "1_o": "w2_affine", "2_q": "w8g32_asym", "2_up": "keep",
    "last_down": "w6g32_affine", "embedding": "w8g64", "head": "w5g32",
}  # fmt: skip


@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]), group=st.sampled_from([32, 64, 128]), groups=st.integers(1, 3),
    rows=st.integers(1, 7), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_codes_of_any_shape(bits: int, group: int, groups: int, rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, group * groups), generator=draw, dtype=torch.uint8)
    numbers = (torch.randn((rows, groups), generator=draw).half() for _ in range(2))
    quantized, format = AffineQuantized(codes, *numbers), AffineFormat(bits, group)
    packed = mlx.pack_codes(quantized, format)
    assert packed["weight"].dtype == torch.uint32
    assert packed["weight"].shape == (rows, group * groups * bits // 32)
    assert torch.equal(mlx.unpack_codes(packed, format, group * groups).codes, codes)
    expected = dequantize_affine(quantized, format, torch.float64).numpy()
    np.testing.assert_array_equal(unpackers.mlx(packed, bits, group), expected)


def words(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Codes (out, in) as mlx packs them: bit by bit, the lowest first, 32 of them in a word."""
    stream = (codes[..., None] >> np.arange(bits) & 1).reshape(len(codes), -1, 32).astype(np.uint32)
    return torch.from_numpy((stream << np.arange(32, dtype=np.uint32)).sum(-1, dtype=np.uint32))


def converted(folder: Path, out: Path, grids: dict[str, Any], **base: Any) -> dict[str, np.ndarray]:
    """A copy of a model as mlx_lm.convert saves it, quantized as mlx's affine_quantize does it: scales of both signs,
    offsets that are no multiples of them. ``grids``: part of a name -> what is said of it, False for not quantized.
    Address -> the weights that it stands for."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    base = {"group_size": 32, "bits": 4} | base
    tensors, weights, said = load_file(folder / "model.safetensors"), {}, dict(base)
    for name in [name for name in tensors if name.endswith(("_proj.weight", "embed_tokens.weight", "lm_head.weight"))]:
        address = name.removesuffix(".weight")
        own = next((grid for part, grid in grids.items() if part in address), base)
        if own != base:
            said[address] = own
        if own is False:
            continue
        weight = tensors.pop(name).float().numpy()
        blocks = weight.reshape(len(weight), -1, own["group_size"])
        low, high = blocks.min(-1), blocks.max(-1)
        first = np.abs(low) > np.abs(high)
        scales = np.maximum((high - low) / (2 ** own["bits"] - 1), 1e-7) * np.where(first, 1, -1)
        edge = np.where(first, low, high)
        steps = np.round(edge / scales)
        scales, offsets = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scales), np.where(steps, edge, 0)
        codes = np.clip(np.round((blocks - offsets[..., None]) / scales[..., None]), 0, 2 ** own["bits"] - 1)
        kept = [torch.from_numpy(each).to(torch.bfloat16) for each in (scales, offsets)]
        wide = [each.double().numpy()[..., None] for each in kept]
        weights[address] = (codes * wide[0] + wide[1]).reshape(weight.shape)
        tensors |= {f"{address}.scales": kept[0], f"{address}.biases": kept[1]}
        tensors[name] = words(codes.reshape(weight.shape).astype(np.int64), own["bits"])
    save_file(tensors, out / "model.safetensors", metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization": said, "quantization_config": said}))
    return weights


GRIDS = {
    "q_proj": {"group_size": 64, "bits": 3}, "v_proj": {"group_size": 32, "bits": 6}, "layers.1.mlp": False,
    "embed_tokens": {"group_size": 64, "bits": 5}, "lm_head": {"group_size": 32, "bits": 8},
}  # fmt: skip


def test_what_mlx_lm_writes_is_read(source: MakeSource, tmp_path: Path) -> None:
    folder = source(tie_word_embeddings=False)
    weights = converted(folder, tmp_path / "theirs", GRIDS)
    found = open_checkpoint(tmp_path / "theirs")
    assert found.container == "mlx"
    assert {address for address, layout in found.layouts.items() if layout.format is not KEEP} == set(weights)
    assert found.layouts[Q].format == AffineFormat(3, 64)
    assert found.layouts[UP].format == AffineFormat(4, 32)
    assert found.layouts["model.embed_tokens"].format == AffineFormat(5, 64)
    assert 8 * open_stored(tmp_path / "theirs").layouts[UP].bytes / (64 * 96) == 4 + 32 / 32
    loaded = Model(tmp_path / "theirs", dtype="float32").load().model
    for address, expected in weights.items():
        np.testing.assert_array_equal(found.weight(found.inventory[address], torch.float64).numpy(), expected)
        np.testing.assert_array_equal(loaded.get_submodule(address).weight.numpy(), expected.astype(np.float32))
    run = CliRunner().invoke
    shown = run(app, ["inspect", str(tmp_path / "theirs")]).output
    assert all(word in shown for word in ("mlx", "w4g32_affine", "w3g64_affine", "embedding: w5g64_affine"))
    shown = run(app, ["diff", str(folder), str(tmp_path / "theirs"), "--worst", "30"])
    assert shown.exit_code == 0 and "w6g32_affine" in shown.output, shown.output
    (tmp_path / "text.txt").write_text(TEXT)
    evaluate = ["evaluate", str(tmp_path / "theirs"), "--reference", str(folder), "--text", str(tmp_path / "text.txt")]
    done = run(app, [*evaluate, "--out", str(tmp_path / "result.json")])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_one_of_its_keys_is_enough(source: MakeSource, tmp_path: Path, key: str) -> None:
    weights = converted(source(), tmp_path / "theirs", {"embed_tokens": False, "lm_head": False}, mode="affine")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del config[key]
    # Where nothing is said of a module, its tensors decide.
    said = next(each for name, each in config.items() if name.startswith("quantization"))
    said.pop("model.embed_tokens"), said.pop("lm_head", None)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    found = open_checkpoint(tmp_path / "theirs")
    assert {address for address, layout in found.layouts.items() if layout.format is not KEEP} == set(weights)
    Model(tmp_path / "theirs").load()


def test_it_is_written_again_and_dense_but_not_as_grids_of_integers(source: MakeSource, tmp_path: Path) -> None:
    converted(source(tie_word_embeddings=False), tmp_path / "theirs", GRIDS)
    theirs = open_checkpoint(tmp_path / "theirs")
    for other in ("mlx", "dense"):
        convert(theirs, FORMATS[other], tmp_path / other)
        again = open_checkpoint(tmp_path / other)
        assert again.container == other
        limit = 0 if other == "mlx" else 2**-8  # bfloat16 rounds
        assert all(found.error <= limit for found in diff(theirs, again).values())
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "mlx"))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor.view(torch.int8), two[name].view(torch.int8)) for name, tensor in one.items())
    left = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & left.keys()
    assert (
        load_file(tmp_path / "dense" / "model.safetensors").keys()
        == load_file(tmp_path / "source" / "model.safetensors").keys()
    )
    with pytest.raises(UserError, match=r"w3g64_affine: only MLX's layout has offsets of 16 bits; write mlx or dense"):
        convert(theirs, FORMATS["gptq"], tmp_path / "out")


@pytest.mark.parametrize("other", ["compressed-tensors", "gptq", "gguf"])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_grids_of_integers_become_offsets_and_themselves_again(
    source: MakeSource, planner: Planner, tmp_path: Path, other: str, asymmetric: bool
) -> None:
    folder = source(tie_word_embeddings=False)
    rules = {"1_q": "w8g32", "2_up": "keep", "1_v": "w3g32"} | ({"1_k": "w4g32_asym"} if asymmetric else {})
    plan = planner(folder, "w4g32", **rules)
    start = "compressed-tensors" if other == "gguf" else other
    compress(Model(folder), plan, tmp_path / "start", format=FORMATS[start])
    first = open_checkpoint(tmp_path / "start")
    convert(first, FORMATS["mlx"], tmp_path / "mlx")
    between = open_checkpoint(tmp_path / "mlx")
    for address, found in diff(first, between).items():
        assert found.error == 0 or (found.format_a == "w4g32_asym" and found.error < 2**-7), address
    assert {str(f) for f in converted_plan(between, FORMATS[other]).formats.values()} == {
        str(format) for format in plan.formats.values()
    }
    convert(between, FORMATS[other], tmp_path / "again")
    again = open_checkpoint(tmp_path / "again")
    assert all(found.error == 0 for found in diff(first, again).values())


def test_every_width_with_embedding_and_head(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(tie_word_embeddings=False)
    plan = planner(folder, "w4g32", **MIXED)
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS["mlx"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    said = config["quantization"]
    assert (said["bits"], said["group_size"]) == (4, 32)
    assert said["model.layers.1.mlp.up_proj"] is False
    assert said["model.layers.0.self_attn.o_proj"] == {"group_size": 64, "bits": 2}  # a whole row of 64
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    for address, format in plan.formats.items():
        own = {name.rpartition(".")[2]: t for name, t in after.items() if name.rpartition(".")[0] == address}
        if format is KEEP:
            assert torch.equal(own["weight"], before[f"{address}.weight"])
            continue
        grid = said.get(address, said)
        found = unpackers.mlx(own, grid["bits"], grid["group_size"])
        weight = before[f"{address}.weight"]
        if isinstance(format, Format):
            expected = dequantize(quantize(weight, format), format, torch.float64).numpy()
            offset = own["biases"].double().abs().numpy().max() * 2**-8
            np.testing.assert_allclose(found, expected, rtol=0, atol=0 if format.symmetric else offset)
        else:
            assert np.abs(found - weight.double().numpy()).max() <= 0.6 * own["scales"].double().numpy().max()


def test_a_tied_embedding(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(tie_word_embeddings=True)
    compress(Model(folder), planner(folder, "w4g32", embedding="w6g32"), tmp_path / "out", format=FORMATS["mlx"])
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in held and held["model.embed_tokens.weight"].dtype == torch.uint32
    assert open_checkpoint(tmp_path / "out").layouts["model.embed_tokens"].format == AffineFormat(6, 32)
    loaded = Model(tmp_path / "out", dtype="bfloat16").load().model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("default", "rules", "message"),
    [
        ("w7g32", {}, "w7g32: MLX has 2, 3, 4, 5, 6, 8 bits"),
        ("w4g16", {}, "w4g16: MLX has groups of 32, 64, 128"),
        ("w4", {}, "down_proj and 1 more: w4: MLX has groups of 32, 64, 128"),  # 96 columns, the others have 64
        ("w4g64", {}, "down_proj and 1 more: w4g64: groups of 64 do not divide 96 columns"),
        ("w4g32", {"1_up": {"format": "any4g32", "method": "anyk"}}, "any4g32: code books are not packed"),
    ],
)
def test_what_it_cannot_hold(
    source: MakeSource, planner: Planner, tmp_path: Path, default: str, rules: dict[str, Any], message: str
) -> None:
    folder = source()
    with pytest.raises(UserError, match=message):
        compress(Model(folder), planner(folder, default, **rules), tmp_path / "out", format=FORMATS["mlx"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
def test_who_holds_no_offsets(source: MakeSource, planner: Planner, form: str) -> None:
    folder = source()
    config = load_config(str(folder))
    plan = planner(folder, "w4g32_affine")
    found = FORMATS[form].problems(plan, decoder_of(config), config)
    assert set(found) == set(plan.formats)
    assert "take w4g32_asym" in found[UP]
    assert not FORMATS["dense"].problems(plan, decoder_of(config), config)


def test_methods_that_make_no_offsets(source: MakeSource, planner: Planner) -> None:
    with pytest.raises(UserError, match="method gptq does not make w4g32_affine; rtn does"):
        planner(source(), "w4g32_affine", method="gptq")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "mxfp4"}, r"config\.json: quantization\.mode: quantized already by MLX, mxfp4, 4 bits, which is not"),
    ({UP: {"group_size": 32, "bits": 4, "mode": "nvfp4"}}, rf"quantization\.{UP}\.mode: quantized already by MLX"),
    ({UP: {"group_size": 32, "bits": 4, "new": 1}}, "new: unknown key"),
    ({"new_key": 1}, r"quantization\.quant_method: quantized already by an unknown method, 4 bits"),
    ({UP: {"group_size": 32, "bits": 3}}, r"up_proj\.weight is 96 x 8, config\.json asks for 96 x 6"),
    ({UP: False}, rf"quantization does not mean {UP}, which is packed"),
    (
        {"model.layers.1.mlp.up_proj": {"group_size": 32, "bits": 4}},
        "means .*1.mlp.up_proj, whose weight is not packed",
    ),
    ({UP: {"group_size": 32, "bits": 9}}, "up_proj: 9 bits in groups of 32 are not read here"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_what_is_not_understood_is_refused(
    source: MakeSource, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    converted(source(tie_word_embeddings=False), tmp_path / "theirs", {"layers.1.mlp": False})
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    said = config["quantization"] | more
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps(
            {key: value for key, value in config.items() if key != "quantization_config"} | {"quantization": said}
        )
    )
    with pytest.raises(UserError, match=message):
        _ = open_checkpoint(tmp_path / "theirs").layouts


def test_a_quantized_model_is_no_original(source: MakeSource, tmp_path: Path) -> None:
    converted(source(), tmp_path / "theirs", {})
    with pytest.raises(UserError, match="quantized already by MLX, 4 bits; give the original model"):
        _ = Model(tmp_path / "theirs").original


def test_offsets_that_are_none(source: MakeSource) -> None:
    """Scales near the end of float16: a zero point times them overflows."""
    folder = source(dtype=torch.float16)
    grid = Grid(torch.full((96, 2), 6e4, dtype=torch.float16), torch.full((96, 2), 2, dtype=torch.uint8))
    quantized = Quantized(torch.zeros(96, 64, dtype=torch.uint8), grid)
    module = CompressedModule(f"{UP}.weight", Format(4, 32, False), quantized, torch.zeros(96, 64))
    with pytest.raises(UserError, match=rf"{UP}: scales times zero points are no offsets in torch\.float16; keep"):
        FORMATS["mlx"].pack(module, plan_for(folder, "w4g32_asym"))
