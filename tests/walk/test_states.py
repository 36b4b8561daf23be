from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixprec.core import publish
from mixprec.core.errors import UserError
from mixprec.walk.states import States

KINDS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), KINDS), max_size=12), st.integers(0, 200))
def test_what_comes_back_is_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int, torch.dtype]], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("states") / "spilled"
    states, expected = States(limit, folder), {}
    for key, size, dtype in puts:
        expected[key] = torch.randn(2, size, 3).to(dtype).transpose(0, 1)
        states[key] = expected[key]
    for key, tensor in expected.items():
        assert states[key].dtype == tensor.dtype
        assert torch.equal(states[key], tensor)
    held = sum(tensor.nbytes for key, tensor in expected.items() if key in states._held)
    assert held <= limit
    assert len(list(folder.glob("*"))) == len([key for key in expected if key not in states._held])
    for key, tensor in expected.items():
        assert torch.equal(states.pop(key), tensor)
    assert not list(folder.glob("*"))


def test_in_memory_nothing_is_written_or_copied(tmp_path: Path) -> None:
    states, tensor = States(100, tmp_path / "spilled"), torch.zeros(25)
    states["a"] = tensor
    states["a"] = tensor  # in its own place: not counted twice
    assert states["a"] is tensor
    assert not (tmp_path / "spilled").exists()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="disk is full"):
        States(0, tmp_path)["a"] = torch.zeros(3)


def test_the_folder_goes_at_the_end_and_what_a_kill_left_goes_first(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), publish.scratch(tmp_path / "states") as folder:
        States(0, folder)["a"] = torch.zeros(3)
        assert list(folder.iterdir())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    place, process = publish._place(), 2**22 + 1  # no process has this number
    left = tmp_path / f".states.{place}-{process}-{'0' * 16}.partial"
    left.mkdir()
    (left / "00000001").write_bytes(b"half")
    with publish.scratch(tmp_path / "states"):
        assert not left.exists()
