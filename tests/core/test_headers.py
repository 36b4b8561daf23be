"""The header of a safetensors file is the one that safetensors itself writes and reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from mixprec.core import headers

DTYPES = (torch.int64, torch.float64, torch.int32, torch.float32, torch.bfloat16, torch.float16)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
)
def test_safetensors_reads_the_header(
    described: dict[str, tuple[torch.dtype, list[int]]], metadata: dict[str, str]
) -> None:
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in described.items()}
    entries = {name: headers.Entry(headers.type_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    header = headers.made(entries, metadata)
    data = b"".join(t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"" for t in tensors.values())
    assert header.size == len(header.text) + len(data)
    found = load(header.text + data)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_header_in_the_order_of_safetensors_is_its_own() -> None:
    tensors = {name: torch.zeros(3, dtype=dtype) for name, dtype in zip("fedcba", DTYPES, strict=True)}
    entries = {name: headers.Entry(headers.type_name(t.dtype), (3,)) for name, t in tensors.items()}
    order = sorted(entries.items(), key=lambda item: (list(headers.BITS).index(item[1].dtype), item[0]))
    assert save(tensors, {"format": "pt"}).startswith(headers.made(dict(order), {"format": "pt"}).text)


def test_metadata_get_sorted_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    metadata = {f"key {number}": "ü" * number for number in range(9)}
    save_file({"a": torch.arange(5)}, path, metadata=metadata)
    size = path.stat().st_size
    with path.open("rb+") as file:
        headers.sort_metadata(file)
    with path.open("rb") as file:
        text = headers.read(file)
    assert text is not None
    assert text.index(b"key 1") < text.index(b"key 2") < text.index(b"key 8")
    assert path.stat().st_size == size
    assert torch.equal(load_file(path)["a"], torch.arange(5))


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8 + b"{}"])
def test_other_files_have_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert headers.read(file) in (None, content)
