"""llama.cpp's types: its own quantizer through ctypes against Python's gguf, importance, plans, what is refused."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from mixprec.compress import ggml as quantizers
from mixprec.compress.ggml import check_possible, ggml, library_path, needs_library
from mixprec.core.errors import UserError
from mixprec.numerics.formats import GGML, KEEP, GgmlFormat
from mixprec.numerics.ggml import dequantize_ggml, ggml_type

#: Building the tables of these takes llama.cpp many seconds, once in a process.
SLOW = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s")


def types(*names: str) -> list[Any]:
    """Parameters, of which those with large tables are slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


with_library = pytest.mark.skipif(library_path() is None, reason="xllamacpp is not installed: mixprec[llamacpp]")


def weights(rows: int = 8, columns: int = 512, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def error(weight: torch.Tensor, name: str, importance: torch.Tensor | None, costs: torch.Tensor) -> float:
    restored = dequantize_ggml(ggml(weight, importance, GgmlFormat(name)), torch.float32)
    return float(((weight - restored).square() * costs).sum() / (weight.square() * costs).sum()) ** 0.5


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0"])
def test_plain_types_need_no_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "library_path", lambda: None)
    weight = weights()
    found = ggml(weight, None, GgmlFormat(name))
    assert torch.equal(found.data, torch.from_numpy(gguf.quants.quantize(weight.numpy(), ggml_type(name))))


@with_library
@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1"])
def test_both_quantizers_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ggml(weights(), None, GgmlFormat(name))
    monkeypatch.setattr(quantizers, "_PLAIN", frozenset())
    assert torch.equal(ggml(weights(), None, GgmlFormat(name)).data, plain.data)


@with_library
@pytest.mark.parametrize(
    ("names", "worst"),
    [
        (["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"], 0.35),
        pytest.param(["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"], 0.65, marks=pytest.mark.slow),
    ],
)
def test_more_bits_are_closer(names: list[str], worst: float) -> None:
    weight, ones = weights(), torch.ones(512)
    errors = [error(weight, name, ones, ones) for name in names]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < worst


@with_library
@pytest.mark.parametrize("name", types("q2_k", "q3_k", "q4_k", "q4_0", "iq4_nl"))
def test_importance_pays_where_it_is_high(name: str) -> None:
    importance = torch.where(torch.arange(512) % 4 == 0, 100.0, 0.01)
    assert error(weights(), name, importance, importance) < error(weights(), name, torch.ones(512), importance)


@with_library
@pytest.mark.parametrize("name", types("q2_k", "iq2_xxs", "iq4_nl", "q4_0"))
def test_the_scale_of_an_importance_says_nothing(name: str) -> None:
    importance = torch.rand(512, generator=torch.Generator().manual_seed(1)) + 0.1
    small = ggml(weights(), importance * 2**-70, GgmlFormat(name))
    assert torch.equal(small.data, ggml(weights(), importance, GgmlFormat(name)).data)


@with_library
@pytest.mark.parametrize("name", types(*(name for name in GGML if needs_library(GgmlFormat(name), True))))
def test_dead_inputs_and_rows_of_zeros(name: str) -> None:
    weight = weights(4)
    weight[1] = 0
    weight[2, :256] = 0
    importance = torch.ones(512)
    importance[::3] = 0
    for vector in (importance, torch.zeros(512)):
        restored = dequantize_ggml(ggml(weight, vector, GgmlFormat(name)), torch.float32)
        assert torch.isfinite(restored).all()
        assert (restored[1] == 0).all()


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="q2_k on a weight"):
        ggml(weights(2, 96), None, GgmlFormat("q2_k"))
    with pytest.raises(ValueError, match="importance"):
        ggml(weights(2, 64), torch.ones(63), GgmlFormat("q8_0"))


def test_what_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"format iq2_xxs: .*importance vector; add compress\.calibration"):
        check_possible([KEEP, GgmlFormat("iq2_xxs")], calibrated=False)
    monkeypatch.setattr(quantizers, "library_path", lambda: None)
    with pytest.raises(UserError, match=r"format q2_k: .*not installed; run: pip install 'mixprec\[llamacpp\]'"):
        check_possible([GgmlFormat("q2_k")], calibrated=False)
    with pytest.raises(UserError, match=r"format q4_0: .*not installed"):
        check_possible([GgmlFormat("q4_0")], calibrated=True)
    check_possible([GgmlFormat("q4_0"), GgmlFormat("q8_0")], calibrated=False)


def test_a_library_of_another_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    class Other:
        def __getattr__(self, name: str) -> object:
            return type("F", (), {"__call__": lambda self, kind: 7})()

    monkeypatch.setattr(quantizers, "library_path", lambda: tmp_path)
    monkeypatch.setattr(quantizers, "_load", lambda path: Other())
    with pytest.raises(UserError, match="its q2_k has blocks of 7 weights in 7 bytes"):
        ggml(weights(), None, GgmlFormat("q2_k"))


def test_chunks_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ggml(weights(), None, GgmlFormat("q5_1"))
    monkeypatch.setattr(quantizers, "_CHUNK", 3 * 512)
    assert np.array_equal(whole.data.numpy(), ggml(weights(), None, GgmlFormat("q5_1")).data.numpy())
