"""quantization_config: what is understood is read, what is not is refused by its key, what is not measured is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_made import plan_for
from safetensors.torch import load_file, save_file
from tiny import TEXT
from typer.testing import CliRunner

from mixprec.checkpoint.convert import convert
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.cli import app
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.model import Model

MakeSource = Callable[..., Path]
CT, GPTQ = "compressed-tensors", "gptq"
GROUP = ("config_groups", "group_0")
ROTATION = {"config_groups": {"R4": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.fixture
def packed(source: MakeSource, tmp_path: Path) -> Callable[[str], Path]:
    """A packed checkpoint without mixprec's own card, one module kept."""

    def make(format: str) -> Path:
        folder = source()
        compress(Model(folder), plan_for(folder, "w4g32", last_down="keep"), tmp_path / format, format=FORMATS[format])
        (tmp_path / format / "mixprec.json").unlink()
        return tmp_path / format

    return make


def say(folder: Path, value: Any, *keys: str) -> Path:
    """Put a value into config.json's quantization_config."""
    config = json.loads((folder / "config.json").read_text())
    place = config["quantization_config"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


REFUSED: list[tuple[str, tuple[str, ...], Any, str]] = [
    (CT, ("transform_config",), ROTATION, r"transform_config: .* changes what runtimes compute"),
    (CT, ("sparsity_config",), {"format": "sparse-24-bitmask"}, r"sparsity_config: .* changes what runtimes compute"),
    (CT, ("new_key",), 1, "new_key: unknown key"),
    (CT, ("quantization_status",), "initialized", "quantization_status: 'initialized'"),
    (CT, ("format",), "nvfp4-pack-quantized", "quantized already by compressed-tensors, nvfp4-pack-quantized"),
    (CT, ("format",), "marlin-24", "quantized already by compressed-tensors, marlin-24"),
    (CT, (*GROUP, "format"), "int-quantized", "quantized already by compressed-tensors"),
    (CT, (*GROUP, "new_key"), 1, r"group_0\.new_key: unknown key"),
    (CT, (*GROUP, "weights", "type"), "float", r"weights\.type: 'float'"),
    (CT, (*GROUP, "weights", "dynamic"), True, r"weights\.dynamic: True"),
    (CT, (*GROUP, "weights", "dynamic"), "local", r"weights\.dynamic: 'local'"),
    (CT, (*GROUP, "weights", "strategy"), "block", r"weights\.strategy: 'block'"),
    (CT, (*GROUP, "weights", "strategy"), "tensor_group", r"weights\.strategy: 'tensor_group'"),
    (CT, (*GROUP, "weights", "actorder"), "sideways", r"weights\.actorder: 'sideways'"),
    (CT, (*GROUP, "weights", "block_structure"), [16, 16], r"weights\.block_structure: \[16, 16\] changes"),
    (CT, (*GROUP, "weights", "smooth"), True, r"weights\.smooth: unknown key"),
    (CT, (*GROUP, "targets"), ["re:.*nothing"], r"does not mean model\.layers\.0\.self_attn\.q_proj, which is packed"),
    (GPTQ, ("rotation",), "hadamard", "rotation: 'hadamard' changes what runtimes compute"),
    (GPTQ, ("adapter",), {"name": "lora", "path": "x"}, "adapter: .* changes what runtimes compute"),
    (GPTQ, ("lm_head",), "yes", "lm_head"),
    (GPTQ, ("is_marlin_format",), True, "is_marlin_format: True"),
    (GPTQ, ("checkpoint_format",), "marlin", "checkpoint_format: 'marlin'"),
    (GPTQ, ("format",), "bitblas", "format: 'bitblas'"),
    (GPTQ, ("pack_dtype",), "int8", "pack_dtype: 'int8'"),
    (GPTQ, ("method",), "qqq", "method: 'qqq'"),
    (GPTQ, ("new_key",), 1, "new_key: unknown key"),
    (GPTQ, ("dynamic",), {"+:.*": {"adapter": 1}}, "unknown key"),
    (GPTQ, ("dynamic",), {}, r"dynamic|means model\.layers\.1\.mlp\.down_proj, whose weight is not packed"),
    (GPTQ, ("dynamic",), {"-:.*": {}}, r"does not mean model\.layers\.0\.self_attn\.q_proj, which is packed"),
    (GPTQ, ("modules_in_block_to_quantize",), [["self_attn.q_proj"]], r"does not mean .*k_proj, which is packed"),
    (GPTQ, ("quant_method",), "awq", r"sym|quantization_config"),
    (GPTQ, ("quant_method",), "auto-round", "quantized already by AutoRound"),
    (GPTQ, ("quant_method",), "something_new", "quantized already by something_new"),
    (GPTQ, ("quant_method",), None, r"quantization_config\.quant_method: quantized already by an unknown method"),
]


@pytest.mark.parametrize(("format", "keys", "value", "message"), REFUSED)
def test_what_is_not_understood_is_refused(
    packed: Callable[[str], Path], format: str, keys: tuple[str, ...], value: Any, message: str
) -> None:
    folder = say(packed(format), value, *keys)
    if keys == ("dynamic",) and value == {}:
        say(folder, None, "modules_in_block_to_quantize")
    for read in (lambda: open_checkpoint(folder).layouts, lambda: Model(folder).load()):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert str(folder) in str(caught.value)


def test_a_weight_that_is_said_to_be_packed(packed: Callable[[str], Path]) -> None:
    folder = say(say(packed(CT), ["Linear"], *GROUP, "targets"), ["lm_head"], "ignore")
    with pytest.raises(UserError, match=r"means model\.layers\.1\.mlp\.down_proj, whose weight is not packed"):
        _ = open_checkpoint(folder).layouts


HARMLESS: list[tuple[str, tuple[str, ...], Any]] = [
    (CT, ("transform_config",), {}),
    (CT, ("sparsity_config",), {}),
    (CT, ("sparsity_config",), {"format": "dense", "global_sparsity": 0.1}),
    (CT, ("version",), "0.9.0"),
    (CT, ("kv_cache_scheme",), None),
    (CT, ("global_compression_ratio",), 1.7),
    (CT, ("quantization_status",), "frozen"),
    (CT, ("format",), "mixed-precision"),
    (CT, (*GROUP, "weights", "observer"), "mse"),
    (CT, (*GROUP, "weights", "observer_kwargs"), {}),
    (CT, (*GROUP, "weights", "actorder"), "static"),
    (CT, (*GROUP, "weights", "zp_dtype"), "torch.int8"),
    (GPTQ, ("damp_percent",), 0.05),
    (GPTQ, ("true_sequential",), True),
    (GPTQ, ("meta",), {"quantizer": ["gptqmodel:4.0"], "anything": 1}),
    (GPTQ, ("exllama_config",), {"version": 1}),
    (GPTQ, ("lm_head",), None),
    (GPTQ, ("method",), "gptq"),
    (GPTQ, ("pack_impl",), "cpu"),
    (GPTQ, ("adapter",), None),
]


@pytest.mark.parametrize(("format", "keys", "value"), HARMLESS)
def test_what_changes_nothing_is_read(
    packed: Callable[[str], Path], format: str, keys: tuple[str, ...], value: Any
) -> None:
    folder = packed(format)
    module = open_checkpoint(folder).inventory.linears[0]
    before = open_checkpoint(folder).weight(module)
    found = open_checkpoint(say(folder, value, *keys))
    assert torch.equal(found.weight(module), before)
    assert found.notes == ()


@pytest.mark.parametrize(("key", "place"), [("compression_config", ()), ("quantization_config", ("text_config",))])
def test_a_quantization_config_in_other_places(packed: Callable[[str], Path], key: str, place: tuple[str, ...]) -> None:
    folder = packed(CT)
    config = json.loads((folder / "config.json").read_text())
    said = {key: config.pop("quantization_config")}
    (folder / "config.json").write_text(json.dumps(config | ({place[0]: said} if place else said)))
    with pytest.raises(UserError, match=r"quantized already by compressed-tensors, pack-quantized"):
        open_checkpoint(folder)


def test_two_places_that_differ(packed: Callable[[str], Path]) -> None:
    folder = packed(CT)
    config = json.loads((folder / "config.json").read_text())
    same = config | {"compression_config": config["quantization_config"]}
    (folder / "config.json").write_text(json.dumps(same))
    assert open_checkpoint(folder).container == CT
    (folder / "config.json").write_text(json.dumps(config | {"compression_config": {"transform_config": ROTATION}}))
    with pytest.raises(UserError, match="compression_config says something else than quantization_config"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "by"),
    [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")],
)
def test_a_quantizer_that_says_so_beside_config_json(packed: Callable[[str], Path], name: str, by: str) -> None:
    folder = packed(GPTQ)
    config = json.loads((folder / "config.json").read_text())
    (folder / name).write_text(json.dumps(config.pop("quantization_config")))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"q_proj is packed, config\.json has no quantization_config; {by} \({name}\)"):
        open_checkpoint(folder)


def test_second_layout_by_its_other_key(packed: Callable[[str], Path], tmp_path: Path) -> None:
    """GPTQModel writes ``checkpoint_format`` and ``format``, others only the latter: zero points are shifted or not."""
    source = tmp_path / "source"
    packed(GPTQ)
    compress(Model(source), plan_for(source, "w4g32_asym"), tmp_path / "v2", format=FORMATS[GPTQ])
    (tmp_path / "v2" / "mixprec.json").unlink()
    found = open_checkpoint(tmp_path / "v2")
    before = found.weight(found.inventory.linears[0])
    config = json.loads((tmp_path / "v2" / "config.json").read_text())
    assert config["quantization_config"].pop("checkpoint_format") == "gptq_v2"
    config["quantization_config"]["format"] = "gptq_v2"
    (tmp_path / "v2" / "config.json").write_text(json.dumps(config))
    again = open_checkpoint(tmp_path / "v2")
    assert torch.equal(again.weight(again.inventory.linears[0]), before)


def test_zero_points_of_a_symmetric_checkpoint_are_the_middle(packed: Callable[[str], Path]) -> None:
    folder = packed(GPTQ)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.qzeros"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(folder)
    with pytest.raises(UserError, match=r"up_proj\.qzeros are not those of a symmetric grid"):
        found.weight(found.inventory["model.layers.0.mlp.up_proj"])


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the tensors of a folder with one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("format", "change", "message"),
    [
        (CT, lambda t: t.update({f"{Q}.weight": torch.ones(64, 64)}), "q_proj is there packed and as a weight"),
        (CT, lambda t: t.update({f"{Q}.scales": torch.ones(2, 64)}), r"llama does not read: 1, first .*q_proj\.scales"),
        (CT, lambda t: t.pop(f"{Q}.weight_shape"), r"q_proj\.weight_shape is missing"),
        (
            CT,
            lambda t: t.pop(f"{Q}.weight_packed"),
            r"missing weights: 1, first .*q_proj\.weight; tensors that llama does not read: 2",
        ),
        (CT, lambda t: t.update({f"{Q}.weight_g_idx": torch.ones(63)}), r"q_proj\.weight_g_idx is 63, .* asks for 64"),
        (GPTQ, lambda t: t.update({f"{Q}.g_idx": torch.ones(63).int()}), r"q_proj\.g_idx is 63, .* asks for 64"),
        (GPTQ, lambda t: t.pop(f"{Q}.qzeros"), r"q_proj\.qzeros is missing"),
        (GPTQ, lambda t: t.update({f"{Q}.bias": torch.ones(64)}), r"llama does not read: 1, first .*q_proj\.bias"),
        (GPTQ, lambda t: t.update({"lm_head.qweight": torch.ones(8, 64)}), "lm_head is there packed and as a weight"),
    ],
)
def test_tensors_of_packed_modules(
    packed: Callable[[str], Path], format: str, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    folder = retensor(packed(format), change)
    for read in (lambda: open_checkpoint(folder).layouts, lambda: Model(folder).load()):
        with pytest.raises(UserError, match=message):
            read()


def test_biases_of_zeros_are_none(packed: Callable[[str], Path]) -> None:
    """AutoGPTQ writes them where the architecture has none."""
    folder = packed(GPTQ)
    before = Model(folder).load().model(torch.arange(2, 20)[None]).logits
    retensor(folder, lambda tensors: tensors.update({f"{Q}.bias": torch.zeros(64)}))
    assert torch.equal(Model(folder).load().model(torch.arange(2, 20)[None]).logits, before)


def test_a_configuration_of_the_other_format(packed: Callable[[str], Path], tmp_path: Path) -> None:
    compress(
        Model(packed(CT).parent / "source"),
        plan_for(tmp_path / "source", "w4g32"),
        tmp_path / "gptq",
        format=FORMATS[GPTQ],
    )
    (tmp_path / "gptq" / "mixprec.json").unlink()
    other = json.loads((tmp_path / CT / "config.json").read_text())
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"quantization_config is of compressed-tensors, .*q_proj is packed as gptq"):
        _ = open_checkpoint(tmp_path / "gptq").layouts


SAID: list[tuple[tuple[str, ...], Any, str]] = [
    ((*GROUP, "input_activations"), INT8, "runtimes also quantize what enters linears"),
    ((*GROUP, "output_activations"), INT8, "runtimes also quantize what linears put out"),
    (("kv_cache_scheme",), INT8, "runtimes also quantize the cache of keys and values"),
]


@pytest.mark.parametrize(("keys", "value", "sentence"), SAID)
def test_what_is_not_simulated_is_said(
    packed: Callable[[str], Path], tmp_path: Path, keys: tuple[str, ...], value: Any, sentence: str
) -> None:
    folder = say(packed(CT), value, *keys)
    edit = load_file(folder / "model.safetensors")
    scales = {
        "model.layers.0.self_attn.q_proj.input_scale": torch.ones(1),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
    }
    save_file(edit | scales, folder / "model.safetensors", metadata={"format": "pt"})
    assert sentence in Model(folder).load().notes[0]
    run = CliRunner().invoke
    assert sentence in run(app, ["inspect", str(folder)]).output
    assert sentence in run(app, ["diff", str(tmp_path / "source"), str(folder)]).output
    (tmp_path / "text.txt").write_text(TEXT)
    evaluate = ["evaluate", str(folder), "--reference", str(tmp_path / "source"), "--text", str(tmp_path / "text.txt")]
    assert run(app, [*evaluate, "--out", str(tmp_path / "result.json")]).exit_code == 0
    assert sentence in json.loads((tmp_path / "result.json").read_text())["notes"][0]
    with pytest.raises(UserError, match="runtimes also quantize"):
        convert(open_checkpoint(folder), FORMATS[GPTQ], tmp_path / "out")


def test_scales_of_activations_without_a_word_about_them(packed: Callable[[str], Path]) -> None:
    folder = packed(CT)
    edit = load_file(folder / "model.safetensors") | {"model.layers.0.self_attn.q_proj.input_scale": torch.ones(1)}
    save_file(edit, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tensors that llama does not read: 1, first .*input_scale"):
        open_checkpoint(folder)


@pytest.mark.parametrize("format", [CT, GPTQ, "gguf"])
def test_what_is_compressed_is_the_original(packed: Callable[[str], Path], tmp_path: Path, format: str) -> None:
    folder = packed(format)
    message = "weights are in a GGUF file" if format == "gguf" else "quantized already by .*; give the original model"
    for read in (
        lambda: Model(folder).original,
        lambda: compress(Model(folder), plan_for(tmp_path / "source", "w4g32"), tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=message):
            read()
