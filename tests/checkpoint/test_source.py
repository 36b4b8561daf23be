from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixprec.core.errors import UserError
from mixprec.models.locate import fetch
from mixprec.models.source import open_source
from mixprec.models.tensors import read_shard

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two files and an index, in a folder with a configuration."""
    save_file({"a": torch.ones(2, 3).bfloat16(), "b": torch.ones(4)}, tmp_path / A, metadata={"format": "pt"})
    save_file({"c": torch.ones(1, dtype=torch.float16)}, tmp_path / B)
    write_index(tmp_path, {"a": A, "b": A, "c": B})
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_headers_say_where_what_lies(sharded: Path) -> None:
    source = open_source(sharded)
    assert source.shards == (A, B)
    assert source.sharded
    assert {name: (info.shard, info.shape, info.dtype) for name, info in source.tensors.items()} == {
        "a": (A, (2, 3), "BF16"),
        "b": (A, (4,), "F32"),
        "c": (B, (1,), "F16"),
    }
    tensors, metadata = read_shard(sharded / A)
    assert list(tensors) == ["a", "b"]
    assert metadata == {"format": "pt"}


def test_side_files_are_named_not_swept_up(sharded: Path) -> None:
    for name in (
        "LICENSE.txt",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "optimizer.pt",
        "run.py",
    ):
        (sharded / name).write_text("x")
    (sharded / "onnx.json").mkdir()
    found = [path.name for path in open_source(sharded).side_files()]
    assert found == ["LICENSE.txt", "chat_template.jinja", "config.json", "merges.txt", "tokenizer.model"]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(folder)
    return str(caught.value)


def test_a_shard_that_the_index_names_is_missing(sharded: Path) -> None:
    (sharded / B).unlink()
    assert f"names {B}, which is not there" in refusal(sharded)


def test_a_tensor_that_the_index_names_is_missing(sharded: Path) -> None:
    write_index(sharded, {"a": A, "b": B, "c": B})
    assert f"b should be in {B}" in refusal(sharded)


def test_a_truncated_shard(sharded: Path) -> None:
    (sharded / B).write_bytes((sharded / B).read_bytes()[:-1])
    assert f"{sharded / B}: broken safetensors file" in refusal(sharded)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "", 3])
def test_an_index_that_points_elsewhere(sharded: Path, name: object) -> None:
    write_index(sharded, {"a": name})
    assert f"a: {name!r} is no plain file name" in refusal(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, []])
def test_an_empty_index(sharded: Path, weight_map: object) -> None:
    write_index(sharded, weight_map)
    assert "weight_map is missing or empty" in refusal(sharded)


def test_a_folder_is_its_own_checkpoint(sharded: Path) -> None:
    assert fetch(str(sharded)) == sharded


def test_a_hub_model_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"mixprec-tests/no-such-model: revision main: not in the hub's cache.*local folder"
    ):
        fetch("mixprec-tests/no-such-model")


def test_an_index_of_the_one_file_is_no_second_model(sharded: Path) -> None:
    (sharded / A).rename(sharded / "model.safetensors")
    with pytest.raises(UserError, match=r"both model\.safetensors and model\.safetensors\.index\.json"):
        open_source(sharded)
    write_index(sharded, {"a": "model.safetensors", "b": "model.safetensors"})
    source = open_source(sharded)
    assert source.shards == ("model.safetensors",)
    assert not source.sharded
