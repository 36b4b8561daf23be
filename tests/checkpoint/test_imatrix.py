"""The importance matrix: means of squares against hooks on the whole model, and the file that llama-quantize reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tiny import TEXT, write_checkpoint
from torch import nn
from typer.testing import CliRunner

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.gguf.imatrix import write_imatrix
from mixprec.cli import app
from mixprec.compress.inputs import mean_squares
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model


@pytest.mark.parametrize("weighted", [False, True])
def test_means_of_squares(tiny_checkpoint: Path, tmp_path: Path, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 300, (3, 12), generator=generator)
    weights = torch.rand(3, 12, generator=generator) if weighted else None
    loaded = Model(tiny_checkpoint).load()
    seen: dict[str, torch.Tensor] = {}

    def watch(address: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            each = torch.ones(3, 12) if weights is None else weights
            seen[address] = (arguments[0] ** 2 * each[..., None]).sum((0, 1)) / each.sum()

        return hook

    for address, linear in loaded.linears.items():
        linear.register_forward_pre_hook(watch(address))
    with torch.no_grad():
        loaded.model(input_ids=tokens)
    opened = Model(tiny_checkpoint).open_blocks(("embedding", "norm"))
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    done: list[int] = []
    found, count = mean_squares(opened, inventory, Calibration(tokens, weights, {}, ""), tmp_path / "x", done.append)
    assert count == 36
    assert sum(done) == len(found) == len(seen)
    for address, expected in seen.items():
        assert torch.allclose(found[address], expected, rtol=1e-4), address


def test_the_verb_writes_what_llama_quantize_reads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    target = tmp_path / "imatrix.gguf"
    options = ["--text", str(tmp_path / "text.txt"), "--samples", "3", "--tokens", "16", "--out", str(target)]
    result = CliRunner().invoke(app, ["imatrix", "--model", str(tiny_checkpoint), *options])
    assert result.exit_code == 0, result.output
    assert "14 modules, 48 tokens" in result.output
    reader = gguf.GGUFReader(target)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.chunk_count"] == 3
    assert fields["imatrix.chunk_size"] == 16
    assert fields["imatrix.datasets"] == [str(tmp_path / "text.txt")]
    assert "general.architecture" not in fields
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 28
    sums, counts = tensors["blk.1.ffn_down.weight.in_sum2"], tensors["blk.1.ffn_down.weight.counts"]
    assert list(sums.shape) == [48, 1]
    assert list(counts.shape) == [1, 1]
    assert counts.data.item() == 48
    assert (sums.data > 0).all()
    # q, k and v see the same inputs.
    assert (tensors["blk.0.attn_q.weight.in_sum2"].data == tensors["blk.0.attn_v.weight.in_sum2"].data).all()
    again = tmp_path / "again.gguf"
    CliRunner().invoke(app, ["imatrix", "--model", str(tiny_checkpoint), *options[:-1], str(again)])
    assert again.read_bytes() == target.read_bytes()


def test_no_data_and_no_names(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["imatrix", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "i.gguf")])
    assert "no data; give --text FILE" in str(result.exception)
    gemma = write_checkpoint(tmp_path / "gemma", "gemma2")
    with pytest.raises(UserError, match="written of llama, mistral, qwen2, qwen3, gemma3_text, not of gemma2"):
        write_imatrix(tmp_path / "i.gguf", {}, load_config(str(gemma)), tokens=1, chunk=1, datasets=[])
