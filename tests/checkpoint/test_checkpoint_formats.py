"""Every format that is packed: what readers find, what is refused, and how many bytes it takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import unpackers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.packings import PACKINGS
from mixprec.checkpoint.target import CompressedModule
from mixprec.compress import stream
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics import storage
from mixprec.numerics.formats import Format, Keep, parse_format
from mixprec.numerics.groupwise import Quantized, Search, dequantize, encode, fit, quantize
from mixprec.plan.schema import Plan

MakeSource = Callable[..., Path]
Planner = Callable[..., Plan]

TOKENS = torch.arange(2, 50).unsqueeze(0)
MIXED = {"1_attn": "w4g32_asym", "2_q": "w8g16", "2_up": "w2", "last_down": "keep"}
#: The same without what makes GPTQ's second layout.
SYMMETRIC = MIXED | {"1_attn": "w4g32"}
#: Format -> what it holds, where that isn't everything above.
HELD = {
    "awq": ("w4g32_asym", {"2_q": "keep", "last_down": "keep"}),
    "mlx": ("w3g32", {"1_attn": "w5g32", "2_q": "w8g32", "2_up": "w2", "2_gate": "w6g32", "last_down": "keep"}),
}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def module_of(tensors: dict[str, torch.Tensor], address: str) -> dict[str, torch.Tensor]:
    prefix = f"{address}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def written(make: MakeSource, planner: Planner, name: str, **options: object) -> tuple[Path, Path, Plan]:
    """Source, checkpoint and plan."""
    default, rules = HELD.get(name, ("w3g32", MIXED))
    if options.pop("symmetric", False):
        rules = SYMMETRIC
    source = make(**options)
    plan = planner(source, default, **rules)
    out = source.parent / f"{name}-out"
    compress(Model(source), plan, out, format=FORMATS[name])
    return source, out, plan


@torch.no_grad()
def in_memory(source: Path, plan: Plan) -> PreTrainedModel:
    """The source's model with its weights rounded, in the source's type."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    for address, format in plan.formats.items():
        weight = model.get_submodule(address).weight
        if isinstance(format, Format):
            weight.copy_(dequantize(quantize(weight, format), format, weight.dtype))
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text"])
def test_transformers_loads_mixed_compressed_tensors(
    source: MakeSource, planner: Planner, architecture: str, dtype: torch.dtype
) -> None:
    folder, out, plan = written(
        source, planner, "compressed-tensors", symmetric=True, architecture=architecture, dtype=dtype
    )
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert loaded.dtype == dtype
    with torch.no_grad():
        found, expected = loaded(TOKENS).logits, in_memory(folder, plan)(TOKENS).logits
    assert torch.equal(found, expected)


def test_transformers_loads_scales_below_zero(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source()
    calibration = Calibration(torch.randint(2, 300, (4, 32)), None, {"sources": []}, "digest")
    plan = planner(folder, "w3g32", "gptq")
    compress(Model(folder), plan, tmp_path / "out", calibration=calibration, format=FORMATS["compressed-tensors"])
    scales = [tensor for name, tensor in tensors_of(tmp_path / "out").items() if name.endswith("_scale")]
    assert all(bool((each < 0).any()) for each in scales)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, Model(tmp_path / "out", dtype="bfloat16").load().model(TOKENS).logits)


def test_transformers_loads_uniform_asymmetric_weights_when_it_dequantizes(
    source: MakeSource, planner: Planner, tmp_path: Path
) -> None:
    folder = source()
    plan = planner(folder, "w4g32_asym", last_down="keep")
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS["compressed-tensors"])
    config = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", quantization_config=config).eval()
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, in_memory(folder, plan)(TOKENS).logits)


def test_transformers_refuses_packed_zero_points_otherwise(
    source: MakeSource, planner: Planner, tmp_path: Path
) -> None:
    folder = source()
    compress(Model(folder), planner(folder, "w4g32_asym"), tmp_path / "out", format=FORMATS["compressed-tensors"])
    # On the meta device compressed-tensors 0.19 makes room for zero points that aren't packed.
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")


def test_what_compressed_tensors_itself_packs(source: MakeSource, planner: Planner) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    folder, out, plan = written(source, planner, "compressed-tensors")
    before, after = tensors_of(folder), tensors_of(out)
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    for address, format in plan.formats.items():
        if isinstance(format, Keep):
            assert torch.equal(before[f"{address}.weight"], after[f"{address}.weight"])
            continue
        assert isinstance(format, Format)
        codes, grid = quantize(before[f"{address}.weight"], format)
        where = (
            {"strategy": "channel"}
            if format.group_size == -1
            else {"strategy": "group", "group_size": format.group_size}
        )
        scheme = QuantizationScheme(
            targets=["Linear"], weights={"num_bits": format.bits, "symmetric": format.symmetric, **where}
        )
        half = 2 ** (format.bits - 1)
        state = {"weight": dequantize((codes, grid), format, torch.float32), "weight_scale": grid.scales.float()}
        if grid.zeros is not None:
            state["weight_zero_point"] = (grid.zeros.to(torch.int16) - half).to(torch.int8)
        expected = library.compress(state, scheme)
        found = module_of(after, address)
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.equal(found[name].float(), expected[name].float()), (address, name)


@pytest.mark.parametrize(
    ("name", "symmetric"),
    [*itertools.product(["compressed-tensors", "gptq"], [True, False]), ("awq", False), ("mlx", False)],
)
def test_an_independent_unpacker_finds_the_same_weights(
    source: MakeSource, planner: Planner, name: str, symmetric: bool
) -> None:
    folder, out, plan = written(source, planner, name, symmetric=symmetric)
    before, after = tensors_of(folder), tensors_of(out)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    grids = {address: config.get(address, config) for address in plan.formats} if name == "mlx" else {}
    if name == "gptq":
        assert config["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
        packed = [address for address, format in plan.formats.items() if isinstance(format, Format)]
        assert set(config["modules_in_block_to_quantize"][0]) == set(packed)  # last_down is kept
    for address, format in plan.formats.items():
        if not isinstance(format, Format):
            continue
        tensors = module_of(after, address)
        weight = before[f"{address}.weight"]
        expected = dequantize(quantize(weight, format), format, torch.float64).numpy()
        group = None if format.group_size == -1 else format.group_size
        if name == "gptq":
            assert tensors["g_idx"].tolist() == [
                column // (group or weight.shape[1]) for column in range(weight.shape[1])
            ]
            found = unpackers.gptq(tensors, format.bits, 1 if symmetric else 0)
        elif name == "mlx":
            grid = grids[address]
            found = unpackers.mlx(tensors, grid["bits"], grid["group_size"])
        elif name == "awq":
            found = unpackers.awq(tensors, config["group_size"])
        else:
            found = unpackers.compressed_tensors(tensors, format.bits, group)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["dense", *PACKINGS])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_bytes_on_disk_are_those_predicted(source: MakeSource, planner: Planner, name: str, shard: str) -> None:
    folder, out, plan = written(source, planner, name, shard=shard, vocab_size=2048)
    config = load_config(str(folder))
    predicted = FORMATS[name].bytes(plan, decoder_of(config), config)
    on_disk = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert on_disk == predicted


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_run_that_goes_on_behind_packed_blocks_ends_with_the_same_bytes(
    source: MakeSource, planner: Planner, tmp_path: Path, name: str, method: str
) -> None:
    folder = source()
    plan = planner(folder, HELD.get(name, ("w3g32",))[0], method, last_down="keep")
    tokens = torch.randint(2, 300, (4, 24), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tokens, None, {"sources": []}, "digest")

    class Killed(Exception):
        pass

    def stop(address: str, _: object) -> None:
        if address == "model.layers.1.mlp.up_proj":
            raise Killed

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    compress(Model(folder), plan, whole, calibration=calibration, format=FORMATS[name])
    with pytest.raises(Killed):
        compress(Model(folder), plan, resumed, calibration=calibration, format=FORMATS[name], on_module=stop)
    assert not resumed.exists()
    assert [path.name for path in (tmp_path / ".resumed.blocks").iterdir()] == ["00001.safetensors"]
    compress(Model(folder), plan, resumed, calibration=calibration, format=FORMATS[name])
    assert {path.name for path in whole.iterdir()} == {path.name for path in resumed.iterdir()}
    for file in whole.iterdir():
        assert file.read_bytes() == (resumed / file.name).read_bytes(), file.name
    index = tensors_of(whole).get("model.layers.0.mlp.up_proj.g_idx")
    assert index is None or index.tolist() == [column // 32 for column in range(64)]  # act order or not


ANY4 = {"1_mlp": {"format": "any4g32", "method": "anyk"}}


@pytest.mark.parametrize(
    ("name", "rules", "message"),
    [
        (
            "compressed-tensors",
            {"2_up": "w3g48"},
            r"1\.mlp\.up_proj: w3g48: groups of 48 do not divide 64 columns; groups",
        ),
        ("gptq", {"2_up": "w5g32"}, r"w5g32: GPTQ's layout has 2, 3, 4, 8 bits"),
        ("compressed-tensors", ANY4, "mlp.gate_proj and 2 more: any4g32: code books are not packed"),
        ("gptq", ANY4, "dense holds every plan"),
    ],
)
def test_what_a_format_cannot_hold_is_said_before_any_work(
    source: MakeSource,
    planner: Planner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rules: dict[str, object],
    message: str,
) -> None:
    folder = source()
    monkeypatch.setattr(stream, "Walk", None)  # nobody gets as far as walking through the blocks
    with pytest.raises(UserError, match=message):
        compress(Model(folder), planner(folder, "w4g32", **rules), tmp_path / "out", format=FORMATS[name])
    assert not (tmp_path / "out").exists()


def test_narrow_matrices_are_refused_by_gptq(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(intermediate_size=80)
    with pytest.raises(UserError, match=r"gate_proj and 3 more: w4g16: GPTQ's readers want .* multiples of 32"):
        compress(Model(folder), planner(folder, "w4g16"), tmp_path / "out", format=FORMATS["gptq"])


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize(("format", "method"), [("any2g32", "anyk"), ("q4_0", "ggml")])
def test_the_size_of_what_is_not_packed_is_refused(
    source: MakeSource, planner: Planner, name: str, format: str, method: str
) -> None:
    folder = source()
    config = load_config(str(folder))
    with pytest.raises(UserError, match=f"checkpoint.format: {format}: .* written dense"):
        FORMATS[name].bytes(planner(folder, format, method), decoder_of(config), config)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["w3g32", "w4g32_asym", "w8g32"])
@pytest.mark.parametrize("search", [None, Search()])
def test_a_format_reads_what_it_packs(
    source: MakeSource, planner: Planner, name: str, text: str, search: Search | None
) -> None:
    folder = source()
    config = load_config(str(folder))
    plan, decoder = planner(folder, text), decoder_of(config)
    if reasons := FORMATS[name].problems(plan, decoder, config):
        pytest.skip(next(iter(reasons.values())))
    module, format = decoder.linears[0], parse_format(text)
    assert isinstance(format, Format)
    weight = torch.randn(module.out_features, module.in_features, dtype=torch.bfloat16)
    grid = fit(weight, format, search=search)
    assert bool((grid.scales < 0).any()) == (search is not None and format.symmetric)
    quantized = Quantized(encode(weight, grid, format), grid)
    restored = dequantize(quantized, format, torch.bfloat16)
    packed = FORMATS[name].pack(CompressedModule(module.weight_name, format, quantized, restored), plan)
    found = FORMATS[name].read(module, packed, format, plan)
    assert torch.equal(storage.dequantize(*found, torch.bfloat16), restored)
    if name in PACKINGS:
        assert isinstance(found.quantized, Quantized)
        assert torch.equal(found.quantized.codes, quantized.codes)
        assert found.format == format


@pytest.mark.parametrize("name", PACKINGS)
def test_tensors_that_are_packed_have_the_shapes_that_are_read(source: MakeSource, planner: Planner, name: str) -> None:
    _, out, plan = written(source, planner, name)
    tensors, packing = tensors_of(out), PACKINGS.get(name)
    assert packing is not None
    for module in decoder_of(load_config(str(out))).linears:
        if isinstance(format := plan.formats[module.address], Format):
            held = module_of(tensors, module.address)
            assert packing.mark in held
            assert held.keys() <= packing.parts
            shapes = packing.shapes(module, format)
            assert {part: tuple(tensor.shape) for part, tensor in held.items()} == {p: shapes[p][0] for p in held}
