"""Block by block: the same numbers as with the whole model in memory, and few weights in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import (
    TINY,
    attributed,
    full_backpropagation,
    layout_of,
    relative_error,
    swept,
    tiny_model,
)
from safetensors.torch import load_file, save_file
from test_engine import WINDOWS
from tiny import TRACES, write_checkpoint

from mixprec.core.errors import UserError
from mixprec.importance import streaming
from mixprec.importance.engine import Job, Layout
from mixprec.importance.streaming import StreamedModel
from mixprec.importance.windows import Window
from mixprec.models.model import Model
from mixprec.models.source import open_source


def streamed(model: Any, folder: Path, **options: Any) -> StreamedModel:
    """Write a model's weights and take them out of its blocks."""
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    model.model.layers.to("meta")
    return StreamedModel(model, None, open_source(folder), **options)  # type: ignore[arg-type]


def job(length: int, seed: int, windows: list[Window]) -> Job:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(2, length, generator=generator)
    return Job(torch.randint(3, 61, (length,), generator=generator), rows, windows)


@pytest.mark.parametrize("architecture", TINY)
def test_a_sweep_gives_what_single_passes_and_full_backpropagation_give(architecture: str, tmp_path: Path) -> None:
    jobs = [job(40, 5, WINDOWS), job(23, 6, [Window(1, 3, 11)]), job(9, 7, [])]
    whole = tiny_model(architecture)
    layout = layout_of(whole)
    sizes = {"chunk_tokens": 16, "batch_tokens": 12}
    singles = [attributed(whole, layout, *each, **sizes) for each in jobs]
    empty = streamed(tiny_model(architecture), tmp_path)
    found = swept(empty, layout_of(empty.model), jobs, **sizes)
    for one, other in zip(singles, found, strict=True):
        assert torch.equal(one.row_sums, other.row_sums)
        assert torch.equal(one.gradients, other.gradients)
    # Gemma 2's reference has a float32 softmax (eager attention).
    reference = full_backpropagation(whole, layout, jobs[0].tokens, WINDOWS[1])
    assert relative_error(found[0].gradients[1], reference) < (1e-5 if architecture == "gemma2" else 1e-9)


def test_one_block_is_in_memory_and_each_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = streamed(tiny_model("llama"), tmp_path)
    read: list[int] = []
    full = StreamedModel.block

    @contextmanager
    def counted(self: StreamedModel, index: int, weights: Any) -> Iterator[Any]:
        with full(self, index, weights) as block:
            read.append(index)
            filled = [n for n, layer in enumerate(self.model.model.layers) if not next(layer.parameters()).is_meta]
            assert filled == [index]
            yield block

    monkeypatch.setattr(StreamedModel, "block", counted)
    swept(empty, layout_of(empty.model), [job(20, 1, [Window(0, 2, 9)]), job(12, 2, [])])
    assert read == [0, 1, 2, 2, 1, 0]
    assert all(parameter.is_meta for parameter in empty.model.model.layers.parameters())


def test_traces_sweep_together_as_far_as_memory_goes(tmp_path: Path) -> None:
    jobs = [job(20, number, [Window(0, 2, 9)]) for number in range(5)]
    empty = streamed(tiny_model("llama"), tmp_path)
    layout = layout_of(empty.model)
    one = streaming._bytes(empty, layout, jobs[0])

    def sizes(budget: int) -> list[int]:
        limited = StreamedModel(empty.model, empty.encoder, empty.source, sweep_bytes=budget)
        return [len(group) for group in streaming.groups(limited, layout, jobs)]

    assert sizes(0) == [1] * 5
    assert sizes(2 * one) == [2, 2, 1]
    assert sizes(10 * one) == [5]


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("llama", {"tie_word_embeddings": True}), ("qwen2", {}), ("gemma3_text", {"sliding_window": 16})],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_opened_checkpoint_is_the_loaded_one(
    architecture: str, options: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "model", architecture, **options)
    whole = Model(folder, dtype=dtype).load()
    empty = streaming.open_model(Model(folder, dtype=dtype))
    tokens = torch.tensor(whole.tokenizer(TRACES[0]["output"])["input_ids"])
    work = Job(tokens, torch.ones(1, len(tokens)), [Window(0, 5, 20), Window(1, 30, 34)])
    one = attributed(whole.model, Layout.of_linears(whole.linears), *work)
    (other,) = swept(empty, Layout.of_linears(empty.linears), [work])
    assert one.gradients.any()
    assert torch.equal(one.row_sums, other.row_sums)
    assert torch.equal(one.gradients, other.gradients)


def test_what_is_wrong_with_a_checkpoint_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    with pytest.raises(UserError, match="device: auto"):
        streaming.open_model(Model(folder, device="auto"))
    with pytest.raises(UserError, match="dtype"):
        streaming.open_model(Model(folder, dtype="int3"))
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(folder / "model.safetensors")
    for broken, message in (
        ({}, f"missing weights: 1, first {name}"),
        ({name: torch.zeros(3, 3)}, r"has the shape \(3, 3\)"),
        ({name: torch.full((48, 32), torch.nan)}, "NaN"),
    ):
        whole = {key: tensor for key, tensor in weights.items() if key != name}
        save_file(whole | broken, folder / "model.safetensors")
        with pytest.raises(UserError, match=message), streaming.open_model(Model(folder)).block(1):
            pass
