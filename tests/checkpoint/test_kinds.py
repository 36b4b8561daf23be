"""What users point the tool at: each thing is named, with its remedy, before any work, by all verbs alike."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TEXT, TRACES, write_checkpoint, write_recipe, write_traces
from typer.testing import CliRunner

from mixprec.checkpoint.opening import open_checkpoint
from mixprec.cli import app
from mixprec.core import artifacts, parsing
from mixprec.core.errors import UserError
from mixprec.models import locate
from mixprec.models.model import Model

SHORT: dict[str, Any] = {
    "plan": {"default": "w4g16"},
    **dict.fromkeys(("variants", "importance", "traces", "evaluate")),
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456789\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("kinds") / "model")


def only(folder: Path, *names: str) -> None:
    """Remove all files but these."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def config(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(said))


def adapter(folder: Path) -> None:
    said = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def instead(*names: str) -> Callable[[Path], None]:
    """Other weights in the place of model.safetensors."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"x" * 3000)

    return change


def quantized(**said: Any) -> Callable[[Path], None]:
    """As if packed by another method."""

    def change(folder: Path) -> None:
        config(folder, quantization_config=said)
        tensors = load_file(folder / "model.safetensors")
        name = "model.layers.0.mlp.up_proj"
        tensors[f"{name}.qweight"] = tensors.pop(f"{name}.weight").to(torch.int32)
        save_file(tensors, folder / "model.safetensors")

    return change


def pointer(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(POINTER) and None


def unfinished(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "download" / "abc.incomplete").write_bytes(b"x")


def nested(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "checkpoint-500" / path.name)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


THINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an adapter": (adapter, r"an adapter \(LORA\) for owner/base, no model; merge it first"),
    "an adapter alone": (
        lambda f: (adapter(f), only(f, "adapter_config.json", "adapter_model.safetensors")),
        r"an adapter \(LORA\) for owner/base, no model; merge it first",
    ),
    "pickles": (pickled, r"weights in pytorch_model\.bin, pickles, .* are not read; load it with transformers"),
    "old pickles": (instead("pytorch_model-00001-of-00002.bin", "b.pt"), "and 1 more, pickles"),
    "pth": (instead("model.pth"), r"weights in model\.pth, pickles"),
    "Mistral's files": (instead("consolidated.safetensors"), "consolidated.safetensors: .*fetch the files for"),
    "Meta's files": (instead("consolidated.00.pth", "params.json"), "consolidated.00.pth: weights under the names"),
    "another name": (instead("weights.safetensors"), "weights in weights.safetensors; read are model.safetens"),
    "ONNX": (instead("model.onnx"), "weights of ONNX; give the model that they were made from, in safetensors"),
    "TensorFlow": (instead("tf_model.h5"), "weights of TensorFlow;"),
    "Flax": (instead("flax_model.msgpack"), "weights of Flax;"),
    "MLX": (instead("weights.npz"), "weights of MLX or NumPy;"),
    "several GGUF files": (instead("a-q4.gguf", "a-q8.gguf"), "2 GGUF files; give the one that is meant, .*a-q4"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there are no weights; fetch them"),
    "an unfinished download": (unfinished, "the download was not finished; fetch it again"),
    "a cut file": (cut, r"model\.safetensors: broken safetensors file"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "no config.json in this folder, beside the weights"),
    "an empty folder": (only, "this folder is empty"),
    "a tokenizer alone": (lambda f: only(f, "tokenizer.json"), "a tokenizer alone, without config.json and weights"),
    "something else": (lambda f: only(f) or (f / "notes.md").write_text("x"), "in this folder; it is no checkpoint"),
    "a folder above": (nested, r"no config\.json in this folder; it lies below, give .*/checkpoint-500"),
    "a pointer for weights": (pointer("model.safetensors"), r"model\.safetensors: pointers of git-lfs.*git lfs pull"),
    "a pointer for the tokenizer": (pointer("tokenizer.json"), "tokenizer.json: pointers of git-lfs.*git lfs pull"),
    "AWQ": (quantized(quant_method="awq", bits=4, version="gemv"), "quantized already by AWQ, gemv, 4 bits"),
    "FP8": (quantized(quant_method="fp8", fmt="e4m3"), "quantized already by FP8, e4m3"),
    "nf4": (
        quantized(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "quantized already by bitsandbytes, nf4, 4 bits",
    ),
    "W8A8": (
        quantized(quant_method="compressed-tensors", format="int-quantized", config_groups={}),
        "quantized already by compressed-tensors, int-quantized",
    ),
    **{
        name: (quantized(quant_method=name), f"quantized already by {said}, which is not read here")
        for name, said in {
            "mxfp4": "MXFP4", "hqq": "HQQ", "aqlm": "aqlm", "quanto": "quanto", "torchao": "torchao", "higgs": "higgs",
            "eetq": "eetq", "vptq": "vptq", "bitnet": "bitnet", "fbgemm_fp8": r"FP8 \(FBGEMM\)", "modelopt": "ModelOpt",
        }.items()
    },
}  # fmt: skip


def verbs(model: Path, on: Path) -> Mapping[str, list[str]]:
    """Whoever reads a model; an untouched one is the reference."""
    plain = {"plan": {"default": "w4g16"}, "variants": None, "importance": None, "traces": None}
    recipe = write_recipe(on / "recipe.yaml", model, on / "traces.jsonl", **plain)
    ranked = write_recipe(on / "ranked.yaml", model, on / "traces.jsonl")
    spans = str(on / "spans.jsonl")
    CliRunner().invoke(app, ["annotate", str(on / "traces.jsonl"), "--out", spans])
    return {
        "run": ["run", str(recipe), "--out", str(on / "run")],
        "run with importance": ["run", str(ranked), "--out", str(on / "ranked")],
        "inspect": ["inspect", str(model)],
        "evaluate": ["evaluate", str(model), "--reference", str(model), "--text", str(on / "text.txt")],
        "attribute": ["attribute", spans, "--model", str(model), "--out", str(on / "importance")],
        "attribute --stream": ["attribute", spans, "--model", str(model), "--out", str(on / "importance"), "--stream"],
    }


#: What a folder with a configuration alone, or with broken weights, is good for: plans are made without weights.
PLANNED = ("no weights", "an unfinished download")


@pytest.mark.parametrize("thing", THINGS)
def test_each_thing_is_named_with_its_remedy(whole: Path, tmp_path: Path, thing: str) -> None:
    change, message = THINGS[thing]
    folder = shutil.copytree(whole, tmp_path / "thing")
    change(folder)
    write_traces(tmp_path / "traces.jsonl", *TRACES[:1])
    for read in (lambda: open_checkpoint(folder), lambda: Model(folder).load()):
        with pytest.raises(UserError, match=message):
            read()
    asked = verbs(folder, tmp_path)
    if thing not in PLANNED:
        recipe = str(tmp_path / "recipe.yaml")
        asked = {**asked, "explain": ["explain", recipe], "validate": ["validate", recipe]}
    for verb, arguments in asked.items():
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, UserError), (verb, result.output)
        assert re.search(message, str(result.exception)), (verb, str(result.exception))
    assert not (tmp_path / "run" / "variants").exists()
    assert not (tmp_path / "ranked" / "spans.jsonl").exists()


def test_a_whole_model_with_what_an_adapter_left(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nowhere/at-all"}')
    tokens = torch.arange(2, 20)[None]
    with torch.no_grad():
        found, expected = (Model(path).load().model(tokens).logits for path in (folder, whole))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"x" * 99, "one file of a checkpoint; give its folder"),
        ("config.json", b"{}", "one file of a checkpoint; give its folder"),
        ("model.bin", b"x", "pickled weights, which can run code and are not read"),
        ("model.pth", b"x", "pickled weights"),
        ("sha256-0123", b"GGUF" + b"x" * 50, "a GGUF file by its content; give it a name that ends in .gguf"),
        ("model.gguf", POINTER.encode(), "a pointer of git-lfs, not the file itself; run: git lfs pull"),
        ("recipe.yaml", b"title: x", "a file, but no GGUF file; give a checkpoint's folder, a .gguf file or a hub id"),
        ("empty", b"", "a file, but no GGUF file"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Model(tmp_path / name).load()
    if b"GGUF" not in content:
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", [r"C:\models\llama", r".\models", "models\\llama"])
def test_paths_of_windows(name: str) -> None:
    with pytest.raises(UserError, match="paths are written with /"):
        locate.resolve(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://huggingface.co/owner/name", r"is an address; give the hub id \(owner/name\)"),
        ("~nobody-of-this-name/model", "(?i)could not determine home|can't determine home"),
    ],
)
def test_names_that_are_no_paths(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate.resolve(name)


_OFFLINE = """
import sys
from mixprec.models.config import load_config
from mixprec.models.model import Model
from mixprec.core.errors import UserError
for name in ("owner/model", "owner/adapter", "owner/pickle"):
    try:
        print(load_config(name).tie_word_embeddings, Model(name).load().model.config.tie_word_embeddings)
    except UserError as problem:
        print(problem)
"""


def test_models_in_the_hubs_cache(whole: Path, tmp_path: Path) -> None:
    """Without a network: the tensors decide about tying there too, and what is no model is named."""
    kinds = {"model": lambda folder: config(folder, tie_word_embeddings=True), "adapter": adapter, "pickle": pickled}
    for name, change in kinds.items():
        root = tmp_path / "hub" / f"models--owner--{name}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("a" * 40)
        change(shutil.copytree(whole, root / "snapshots" / ("a" * 40)))
    found = subprocess.run(
        [sys.executable, "-c", _OFFLINE],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert found[0] == "False False"
    assert "model.id: owner/adapter: an adapter (LORA) for owner/base" in found[1]
    assert "model.id: owner/pickle: weights in pytorch_model.bin, pickles" in found[2]


NAMES = [
    "with spaces", "[x]", "a*b", "100%", "a#b", "what?", "it's", 'say "so"', "naïve 模型", "a{b}c", "$HOME", "~",
    "owner/name", "dots.and.gguf.folder", "folder.gguf", "-dash", "a;b&c", "re:x", "bundled:x", "x@y",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_paths_as_users_have_them(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Given as they are, relative, with a slash behind, through a link and from home, a folder is one model."""
    base = tmp_path / "some where"
    folder = base / name
    shutil.copytree(whole, folder)
    (tmp_path / "link [1]").symlink_to(folder)
    write_traces(tmp_path / "traces.jsonl", *TRACES[:1])
    monkeypatch.chdir(base)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [str(folder), f"{folder}/", f"./{name}", f"../some where/{name}", f"{tmp_path}/link [1]", "~/link [1]"]
    assert {Model(each).identity for each in given} == {Model(whole).identity}
    recipe = write_recipe(tmp_path / "recipe.yaml", Path(given[2]), tmp_path / "traces.jsonl", **SHORT)
    asked = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(asked | {"model": {"id": given[2]}}))
    run = CliRunner().invoke(app, ["run", str(recipe), "--out", str(base / "run [1] %s")])
    assert run.exception is None, run.output
    made = base / "run [1] %s" / "variants" / "compressed" / "checkpoint"
    for verb in (["inspect", str(made)], ["inspect", "~/link [1]"], ["diff", given[5], str(made)]):
        result = CliRunner().invoke(app, verb)
        assert result.exception is None, (verb, result.exception)


def test_files_of_the_hubs_cache_are_links(whole: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(whole.iterdir())):
        shutil.copy(path, blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:040x}")
    assert Model(snapshot).identity == Model(whole).identity
    recipe = write_recipe(tmp_path / "recipe.yaml", snapshot, write_traces(tmp_path / "traces.jsonl"), **SHORT)
    assert CliRunner().invoke(app, ["run", str(recipe), "--out", str(tmp_path / "run")]).exception is None
    assert all(not path.is_symlink() for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match=rf"it lies below, give .*{'0' * 40}"):
        locate.resolve(str(tmp_path))


def test_a_mark_in_front_of_texts_is_no_part_of_them(tmp_path: Path) -> None:
    """Windows writes one (BOM)."""
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    for folder, encoding in ((plain, "utf-8"), (marked, "utf-8-sig")):
        folder.mkdir()
        text = write_traces(folder / "traces.jsonl").read_text(encoding="utf-8")
        (folder / "traces.jsonl").write_text(text, encoding=encoding)
        (folder / "text.txt").write_text(TEXT, encoding=encoding)
        (folder / "some.json").write_text('{"a": 1}', encoding=encoding)
        (folder / "some.yaml").write_text("a: 1\n", encoding=encoding)
    assert artifacts.read_text(marked / "text.txt") == TEXT
    assert artifacts.read_json(marked / "some.json") == {"a": 1}
    assert parsing.parse_yaml(artifacts.read_text(marked / "some.yaml")) == {"a": 1}
    assert artifacts.read_jsonl(marked / "traces.jsonl") == artifacts.read_jsonl(plain / "traces.jsonl")
    (tmp_path / "wide.txt").write_text(TEXT, encoding="utf-16")
    with pytest.raises(UserError, match=r"wide\.txt: not UTF-8 text .*; save it as UTF-8"):
        artifacts.read_text(tmp_path / "wide.txt")
