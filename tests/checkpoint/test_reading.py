"""Checkpoints read back, compared, converted and verified; the model card; the flag that uploads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mixprec.checkpoint import publish
from mixprec.checkpoint.base import space
from mixprec.checkpoint.compare import diff
from mixprec.checkpoint.convert import convert, plan_of
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.hub import push
from mixprec.checkpoint.integrity import verify
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.checkpoint.target import CARD, check_target
from mixprec.cli import app
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.models.source import open_source
from mixprec.numerics.formats import AffineFormat, Format
from mixprec.numerics.groupwise import dequantize, quantize
from mixprec.plan.schema import Plan

MakeSource = Callable[..., Path]
Planner = Callable[..., Plan]

PACKED = ["compressed-tensors", "gptq"]
RULES = {"1_attn": "w4g32", "2_q": "w8g16", "2_up": "w2", "last_down": "keep"}
#: Format -> default and rules that it holds, where that isn't everything above.
FEWER = {
    "gguf": ("w4g32", {"last_down": "keep"}),
    "awq": ("w4g32_asym", {"last_down": "keep"}),
    "mlx": ("w3g32", {"1_attn": "w4g32", "2_q": "w8g64", "2_up": "w2g32", "last_down": "keep"}),
}
TOKENS = torch.arange(2, 40).unsqueeze(0)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture
def packed(source: MakeSource, planner: Planner, tmp_path: Path) -> Callable[..., Path]:
    """Compress a tiny source into ``name``."""

    def make(format: str, name: str = "packed", *, shard: str = "1GB", default: str = "w3g32", **rules: str) -> Path:
        folder = tmp_path / "source" if (tmp_path / "source").is_dir() else source(shard=shard)
        compress(Model(folder), planner(folder, default, **(rules or RULES)), tmp_path / name, format=FORMATS[format])
        return tmp_path / name

    return make


@pytest.mark.parametrize("format", FORMATS)
def test_layouts_and_weights_are_read_back(packed: Callable[..., Path], format: str) -> None:
    default, rules = FEWER.get(format, ("w3g32", RULES))
    folder = packed(format, default=default, **rules)
    found = open_checkpoint(folder)
    source = tensors_of(folder.parent / "source")
    plan = Plan.model_validate(json.loads((folder / "mixprec.json").read_text())["plan"])
    assert found.container == format
    for module in found.inventory.linears:
        planned = plan.formats[module.address]
        weight = source[module.weight_name]
        expected = weight.float()
        if isinstance(planned, Format):
            expected = dequantize(quantize(weight, planned), planned, torch.bfloat16).float()
        assert torch.equal(found.weight(module, torch.bfloat16).float(), expected)
        if format == "mlx" and isinstance(planned, Format):  # it has offsets in the place of zero points
            planned = AffineFormat(planned.bits, planned.group_size)
        if format not in ("dense", "gguf"):
            assert found.layouts[module.address].format == planned


@pytest.mark.parametrize("first", PACKED)
@pytest.mark.parametrize("second", PACKED)
@pytest.mark.parametrize("asymmetric", [False, True])
def test_packed_formats_convert_without_loss(
    packed: Callable[..., Path], tmp_path: Path, first: str, second: str, asymmetric: bool
) -> None:
    rules = RULES | {"2_k": "w4g16_asym"} if asymmetric else RULES
    start = packed(first, shard="20KB", **rules)
    convert(open_checkpoint(start), FORMATS[second], tmp_path / "second")
    direct = packed(second, "direct", **rules)
    assert tensors_of(tmp_path / "second").keys() == tensors_of(direct).keys()
    for name, tensor in tensors_of(direct).items():
        assert torch.equal(tensor, tensors_of(tmp_path / "second")[name]), name
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("second", "direct")]
    assert configs[0] == configs[1]
    assert plan_of(open_checkpoint(tmp_path / "second")).formats == plan_of(open_checkpoint(start)).formats
    assert verify(tmp_path / "second")
    assert all(item.error == 0 for item in diff(open_checkpoint(start), open_checkpoint(tmp_path / "second")).values())


def test_packed_becomes_dense(packed: Callable[..., Path], tmp_path: Path) -> None:
    convert(open_checkpoint(packed("gptq")), FORMATS["dense"], tmp_path / "dense")
    expected = tensors_of(packed("dense", "direct"))
    assert {name: tensor.tolist() for name, tensor in tensors_of(tmp_path / "dense").items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_what_does_not_convert(packed: Callable[..., Path], tmp_path: Path) -> None:
    five = open_checkpoint(packed("compressed-tensors", "five", **{"1_q": "w5g32"}))
    with pytest.raises(UserError, match="w5g32: GPTQ's layout has 2, 3, 4, 8 bits"):
        convert(five, FORMATS["gptq"], tmp_path / "out")
    with pytest.raises(UserError, match="holds no packed modules"):
        convert(open_checkpoint(tmp_path / "source"), FORMATS["gptq"], tmp_path / "out")
    ordered = packed("gptq", "ordered")
    name = "model.layers.0.mlp.up_proj.g_idx"
    tensors = tensors_of(ordered)
    tensors[name] = tensors[name].flip(0)
    save_file(tensors, ordered / "model.safetensors", metadata={"format": "pt"})
    (ordered / "mixprec.json").unlink()
    with pytest.raises(UserError, match=r"up_proj: its columns are reordered"):
        convert(open_checkpoint(ordered), FORMATS["compressed-tensors"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reordered_columns_are_read(packed: Callable[..., Path]) -> None:
    folder = packed("gptq")
    before = open_checkpoint(folder)
    module = before.inventory["model.layers.0.mlp.up_proj"]
    weight = before.weight(module)
    tensors = tensors_of(folder)
    prefix, half = module.address, module.in_features // 2
    # Column c and column c + half change places, codes and groups alike: the same weight with its columns moved.
    codes, _ = before.quantized(module)
    order = torch.cat([torch.arange(half, 2 * half), torch.arange(half)])
    from mixprec.numerics import packing

    unsigned = (codes[:, order].to(torch.int16) + 4).to(torch.uint8)
    tensors[f"{prefix}.qweight"] = packing.pack(unsigned, 3).T.contiguous()
    tensors[f"{prefix}.g_idx"] = tensors[f"{prefix}.g_idx"][order]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(open_checkpoint(folder).weight(module), weight[:, order])


def test_words_padded_by_older_versions_are_read(packed: Callable[..., Path]) -> None:
    folder = packed("compressed-tensors", **{"1_q": "w3g32"})
    before = open_checkpoint(folder)
    module = before.inventory["model.layers.0.self_attn.q_proj"]
    weight = before.weight(module)
    codes = before.quantized(module).codes.to(torch.int64) + 4
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 10)).view(len(codes), -1, 10)
    words = sum(padded[..., place] << (3 * place) for place in range(10))
    tensors = tensors_of(folder)
    tensors[f"{module.address}.weight_packed"] = words.to(torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(open_checkpoint(folder).weight(module), weight)


@pytest.mark.parametrize("format", PACKED)
def test_packed_checkpoints_are_loaded_for_evaluation(packed: Callable[..., Path], format: str) -> None:
    loaded = Model(packed(format), dtype="bfloat16").load()
    dense = AutoModelForCausalLM.from_pretrained(packed("dense", "dense"), dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(loaded.model(TOKENS).logits, dense(TOKENS).logits)
    assert len(loaded.linears) == 14


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "missing":
        (folder / "tokenizer.json").unlink()
    else:
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [("cut", "bytes, mixprec.json has"), ("bit", "its sha256 is not"), ("missing", "missing, mixprec")],
)
def test_damaged_files_are_noticed_by_whatever_reads_them(packed: Callable[..., Path], how: str, message: str) -> None:
    folder = packed("compressed-tensors")
    assert verify(folder)
    damage(folder, how)
    for attempt in (lambda: verify(folder), lambda: Model(folder).load(), lambda: push(folder, "me/it", object())):
        with pytest.raises(UserError, match=message):
            attempt()
    for verb in (["inspect", str(folder)], ["diff", str(folder.parent / "source"), str(folder)]):
        result = CliRunner().invoke(app, verb)
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)


@pytest.mark.parametrize("text", ["[]", '{"plan": []}', '{"files": 1}', '{"files": {"a"'])
def test_a_card_that_is_none(packed: Callable[..., Path], text: str) -> None:
    folder = packed("gptq")
    (folder / "mixprec.json").write_text(text)
    result = CliRunner().invoke(app, ["inspect", str(folder)])
    assert isinstance(result.exception, UserError)
    assert "mixprec.json" in str(result.exception)


def test_checkpoints_of_two_models_are_not_compared(source: MakeSource, packed: Callable[..., Path]) -> None:
    other = source(name="other", intermediate_size=128)
    with pytest.raises(
        UserError, match=r"not of one model: model\.layers\.0\.mlp\.gate_proj is 96 x 64 in .* has 128 x 64"
    ):
        diff(open_checkpoint(packed("dense")), open_checkpoint(other))


def test_another_architecture_and_half_a_checkpoint(packed: Callable[..., Path]) -> None:
    folder = packed("gptq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match="GPT2LMHeadModel has no linear modules"):
        open_checkpoint(folder)
    broken = config | {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"quantization_config: 2 problems\n  bits: this key is missing"):
        open_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor for name, tensor in tensors_of(folder).items() if not name.endswith("up_proj.scales")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj\.scales is missing; fetch the whole checkpoint again"):
        _ = open_checkpoint(folder).layouts


@pytest.mark.parametrize(
    ("format", "key", "value", "message"),
    [
        ("gptq", "bits", 4, r"q_proj\.qweight is 6 x 64, config.json asks for 8 x 64"),
        ("gptq", "group_size", 64, r"q_proj\.scales is 2 x 64, config.json asks for 1 x 64"),
        ("compressed-tensors", "num_bits", 4, r"q_proj\.weight_packed is 64 x 6, config.json asks for 64 x 8"),
        ("compressed-tensors", "group_size", 16, r"q_proj\.weight_scale is 64 x 2, config.json asks for 64 x 4"),
        ("dense", "intermediate_size", 128, r"down_proj\.weight has the shape \(64, 96\), config\.json asks"),
    ],
)
def test_a_configuration_of_another_checkpoint(
    packed: Callable[..., Path], format: str, key: str, value: int, message: str
) -> None:
    folder = packed(format, **{"1_q": "w3g32"})
    config = json.loads((folder / "config.json").read_text())
    said = config.get("quantization_config", config)
    (said["config_groups"]["group_0"]["weights"] if format == "compressed-tensors" else said)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        _ = open_checkpoint(folder).layouts


def test_a_target_that_cannot_be_written(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="can't be written"):
        compress(Model(folder), planner(folder, "w3g32"), tmp_path / "file" / "out", format=FORMATS["gptq"])


def test_a_read_only_target_is_noticed_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere but to a file system that is mounted so.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=f"new/out: can't be written, {tmp_path} takes no files"):
        check_target(tmp_path / "new" / "out", tmp_path / "source")


@pytest.mark.parametrize("format", FORMATS)
def test_too_little_space_is_noticed_before_any_work(
    source: MakeSource, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    folder, target = source(), tmp_path / "target"
    target.mkdir()
    plan, config, taken = (
        planner(folder, FEWER.get(format, ("w4g32",))[0], last_down="keep"),
        load_config(str(folder)),
        [],
    )
    needed = space(FORMATS[format], plan, decoder_of(config), config, open_source(folder))

    def disk(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, free=free))

    disk(needed - 1)
    with pytest.raises(UserError, match=f"out: writing it takes {needed:,} bytes, {target} has {needed - 1:,} free"):
        compress(Model(folder), plan, target / "out", format=FORMATS[format])
    assert not any(target.iterdir())

    def last(made: Path) -> None:
        files = [path for path in target.rglob("*") if path.is_file() and path.name not in ("README.md", CARD)]
        taken.append(sum(path.stat().st_size for path in files))
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "seal", lambda made, card: last(made))
    disk(needed)
    with pytest.raises(KeyboardInterrupt):
        compress(Model(folder), plan, target / "out", format=FORMATS[format])
    assert taken[0] == pytest.approx(needed, rel=0.05)
    monkeypatch.undo()
    disk(needed - 10_000)  # what the finished blocks take is there already
    compress(Model(folder), plan, target / "out", format=FORMATS[format])


def test_inspect_diff_and_convert_from_the_command_line(packed: Callable[..., Path], tmp_path: Path) -> None:
    folder = packed("compressed-tensors")
    run = CliRunner().invoke
    found = run(app, ["inspect", str(folder), "--picture", str(tmp_path / "layout.png")])
    assert found.exit_code == 0, found.output
    assert "checksums: as written" in found.output
    rows = [line.split() for line in found.output.splitlines()]
    assert ["4", "attn", "1", "compressed-tensors", "w4g32", "w4g32"] in [row[:6] for row in rows]
    assert ["1", "down", "2", "dense", "bf16", "keep", "16.0000"] in rows
    assert (tmp_path / "layout.png").read_bytes().startswith(b"\x89PNG")
    assert "2_down" in run(app, ["inspect", str(folder), "--all"]).output
    found = run(app, ["diff", str(tmp_path / "source"), str(folder), "--out", str(tmp_path / "diff.json")])
    assert found.exit_code == 0, found.output
    assert ["3", "bf16", "bf16", "16.0000", "16.0000", "0", "0", "3"] in map(str.split, found.output.splitlines())
    assert found.output.index("2_up") < found.output.index("2_gate") and "2_down" not in found.output
    rows = json.loads((tmp_path / "diff.json").read_text())
    assert rows["model.layers.1.mlp.down_proj"]["error"] == 0
    assert 0.5 < rows["model.layers.1.mlp.up_proj"]["error"] < 1.1  # 2 bits
    assert rows["model.layers.0.mlp.up_proj"]["bits_b"] == pytest.approx(3 + 16 / 32 + 8 * 16 / (96 * 64))
    found = run(app, ["convert", str(folder), "--format", "gptq", "--out", str(tmp_path / "converted")])
    assert found.exit_code == 0, found.output
    assert open_checkpoint(tmp_path / "converted").container == "gptq"


def test_the_card_names_base_licence_bits_and_formats(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source()
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# Base\n")
    shutil.copy(folder / "README.md", folder / "chat_template.jinja")
    compress(Model(folder), planner(folder, "w3g32", last_mlp="keep"), tmp_path / "out", format=FORMATS["gptq"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "base_model" not in card and str(folder) not in card
    assert "| w3g32 | 11 modules" in card and "by rtn (11)" in card
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    known = json.loads((tmp_path / "out" / "mixprec.json").read_text())["files"]
    assert set(known) == {path.name for path in (tmp_path / "out").iterdir()} - {"README.md", "mixprec.json"}


class FakeApi:
    def __init__(self, fails: bool = False) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails

    def create_repo(self, repository: str, **options: Any) -> None:
        if self.fails:
            raise PermissionError("401 Unauthorized\nmore")
        self.calls.append((repository, options))

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload", options))
        return SimpleNamespace(commit_url="https://hub/commit")


def test_uploading(packed: Callable[..., Path]) -> None:
    folder, api = packed("gptq"), FakeApi()
    assert push(folder, "me/model", api) == "https://hub/commit"
    assert api.calls[0] == ("me/model", {"private": True, "exist_ok": True})
    assert api.calls[1][1]["folder_path"] == str(folder)
    with pytest.raises(UserError, match="me/model: 401 Unauthorized; check the token"):
        push(folder, "me/model", FakeApi(fails=True))
    with pytest.raises(UserError, match="'model' is no repository"):
        push(folder, "model", api)
