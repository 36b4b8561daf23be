"""Tensors that are filled piece by piece on disk, against safetensors' own reader."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.importance.tensorfile import Shape, create

pieces = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(1, 4), st.integers(-9, 9)), max_size=12)


@given(pieces, st.sampled_from([torch.float32, torch.float64]))
def test_pieces_add_up_to_the_tensor(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[int, int, int, int]], dtype: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "x.safetensors"
    expected = torch.zeros(3, 10, dtype=dtype)
    shapes = {"rows": Shape(dtype, (3, 10)), "odd": Shape(torch.int64, (1,)), "none": Shape(dtype, (0, 10))}
    with create(path, shapes, {"stamp": "ü", "tokens": 7}) as file:
        file.write("odd", torch.tensor([5]))
        file.write("none", torch.zeros(0, 10, dtype=dtype))
        for row, start, length, value in chosen:
            expected[row, start : start + length] += value
            file.add("rows", row, start, torch.full((length,), float(value), dtype=dtype))
    tensors, metadata = artifacts.load_tensors(path)
    assert metadata == {"stamp": "ü", "tokens": 7}
    assert torch.equal(tensors["rows"], expected) and tensors["odd"].tolist() == [5]
    assert tensors["none"].shape == (0, 10)
    assert torch.equal(load_file(path)["rows"], expected)


def test_the_file_appears_only_when_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(KeyboardInterrupt), create(path, {"a": Shape(torch.float32, (2,))}, {}):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_other_shapes_and_dtypes_are_refused(tmp_path: Path) -> None:
    with create(tmp_path / "x.safetensors", {"a": Shape(torch.float32, (2, 3))}, {}) as file:
        for wrong in (torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64)):
            with pytest.raises(ValueError, match="announced was"):
                file.write("a", wrong)


def test_a_full_disk_is_the_users_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="the disk is full"), create(path, {"a": Shape(torch.float32, (2,))}, {}):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
