from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.walk import walk as walking
from mixprec.walk.blocks import Blocks, Live
from mixprec.walk.walk import walk


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, threading.Event]]:
    """Each block that is read, from 0, and an event: ``any`` reading sets the first one that waits for it."""
    found: list[tuple[int, threading.Event]] = [(0, threading.Event()), (1, threading.Event())]
    read = Blocks.read

    def telling(self: Blocks, index: int) -> Any:
        weights = read(self, index)
        found[index][1].set()
        return weights

    monkeypatch.setattr(Blocks, "read", telling)
    return found


def test_the_next_block_is_read_while_a_visitor_works(
    tiny_checkpoint: Path, reads: list[tuple[int, threading.Event]]
) -> None:
    came: list[bool] = []

    def visit(index: int, block: nn.Module) -> None:
        assert not next(block.parameters()).is_meta
        if index == 0:
            came.append(reads[1][1].wait(60))

    opened = Model(tiny_checkpoint).open_blocks(())
    walk(opened, [0, 1], visit)
    assert came == [True]
    assert all(parameter.is_meta for parameter in opened.model.model.layers.parameters())


def test_without_memory_for_two_blocks_it_waits(
    tiny_checkpoint: Path, reads: list[tuple[int, threading.Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking.psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    order: list[tuple[int, bool]] = []
    walk(
        Model(tiny_checkpoint).open_blocks(()),
        [0, 1],
        lambda index, _: order.append((index, reads[1][1].wait(0.2))),
    )
    assert order == [(0, False), (1, True)]


def test_a_broken_block_is_told_when_its_turn_comes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    visited: list[int] = []
    with pytest.raises(UserError, match="holds NaN"):
        walk(Model(tmp_path).open_blocks(()), [0, 1], lambda index, _: visited.append(index))
    assert visited == [0]


def test_what_a_visitor_changes_in_a_loaded_model_stays(tiny_checkpoint: Path) -> None:
    model = Model(tiny_checkpoint).load().model

    @torch.no_grad()
    def visit(index: int, block: nn.Module) -> None:
        block.get_parameter("mlp.up_proj.weight").fill_(index + 1)

    walk(Live(model), range(2), visit)
    assert [float(layer.mlp.up_proj.weight.mean()) for layer in model.model.layers] == [1, 2]
