"""Every kernel is compared with its reference in torch; and so is a second implementation that is registered here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from second_device import second_device
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from mixprec.compress.gptq import transposed
from mixprec.numerics.codebook import CodebookQuantized
from mixprec.numerics.formats import CodebookFormat, Format
from mixprec.numerics.groupwise import Search, fit, quantize
from mixprec.numerics.hessian import factorize
from mixprec.numerics.kernels import KERNELS
from mixprec.numerics.words import words

Arguments = tuple[Any, ...]
FORMATS = [Format(3, 16), Format(4, 24, symmetric=False), Format(8), Format(2, 7)]


def weights() -> Tensor:
    return torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


def codes(bits: int) -> Tensor:
    return torch.randint(2**bits, (5, 61), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)


def packed(bits: int) -> Tensor:
    shape, generator = (5, words(61, bits)), torch.Generator().manual_seed(bits)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def solving() -> Iterator[Arguments]:
    inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    for format in FORMATS:
        factor = factorize(inputs.T @ inputs / 200, act_order=True, group_size=16)
        yield transposed(weights(), factor), factor, format, torch.float16, 32, False, Search()


def books() -> Iterator[Arguments]:
    torch.manual_seed(0)
    for bits in (2, 3, 4):
        book = torch.randn(5, 2**bits).sort(1).values
        yield CodebookQuantized(codes(bits), book, *torch.rand(2, 5, 4)), CodebookFormat(bits, 16), torch.bfloat16


#: Operation -> what it is given.
CASES: dict[str, Callable[[], Iterator[Arguments]]] = {
    "groupwise.fit": lambda: ((weights(), format) for format in FORMATS),
    "groupwise.encode": lambda: ((weights(), fit(weights(), format), format) for format in FORMATS),
    "groupwise.dequantize": lambda: ((quantize(weights(), f), f, torch.bfloat16) for f in FORMATS),
    "codebook.dequantize_codebook": books,
    "packing.pack": lambda: ((codes(bits), bits) for bits in range(1, 9)),
    "packing.unpack": lambda: ((packed(bits), bits, 61) for bits in range(1, 9)),
    "gptq.solve": solving,
}


def operation(name: str) -> Callable[..., Any]:
    module, function = name.split(".")
    package = "mixprec.compress" if module == "gptq" else "mixprec.numerics"
    found: Callable[..., Any] = getattr(importlib.import_module(f"{package}.{module}"), function)
    return found


def compare(name: str, device: str) -> None:
    """What ``operation`` makes on ``device`` is what the reference makes on the CPU."""
    for arguments, same in zip(list(CASES[name]()), list(CASES[name]()), strict=True):
        expected = operation(name).__wrapped__(*arguments)  # type: ignore[attr-defined]
        found = operation(name)(*tree_map_only(Tensor, lambda tensor: tensor.to(device), same))
        for there, here in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            if isinstance(here, Tensor):
                assert there.device.type == device
                torch.testing.assert_close(there.cpu(), here, rtol=1e-6 * here.is_floating_point(), atol=0)


def on_the_cpu(name: str, called: list[str]) -> Callable[..., Any]:
    """A second implementation: it takes everything to the CPU and back."""

    def kernel(*arguments: Any) -> Any:
        called.append(name)
        here = tree_map_only(Tensor, lambda tensor: tensor.cpu(), arguments)
        made = operation(name).__wrapped__(*here)  # type: ignore[attr-defined]
        return tree_map_only(Tensor, lambda tensor: tensor.to("second"), made)

    return kernel


def loops(called: list[str]) -> Callable[..., Any]:
    """packing.pack, bit by bit."""

    def kernel(given: Tensor, bits: int) -> Tensor:
        called.append("packing.pack")
        rows = []
        for row in given.tolist():
            stream = sum(code << (bits * place) for place, code in enumerate(row))
            cut = [(stream >> (32 * place)) % 2**32 for place in range(words(len(row), bits))]
            rows.append([word - 2**32 * (word >= 2**31) for word in cut])
        return torch.tensor(rows, dtype=torch.int32).to("second")

    return kernel


def test_every_operation_has_a_case() -> None:
    assert CASES.keys() == KERNELS.keys()
    assert all(hasattr(operation(name), "__wrapped__") for name in KERNELS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_cuda_make_what_the_reference_makes(name: str) -> None:
    if "cuda" in KERNELS[name]:
        compare(name, "cuda")


@pytest.mark.parametrize("name", KERNELS)
def test_a_second_implementation_is_called_and_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    kernel = loops(called) if name == "packing.pack" else on_the_cpu(name, called)
    monkeypatch.setitem(KERNELS[name], "second", kernel)
    with second_device():
        compare(name, "second")
    assert called == [name] * len(list(CASES[name]()))
    operation(name)(*next(CASES[name]()))
    assert len(called) == len(list(CASES[name]())), "the CPU keeps the reference"


def test_a_kernel_that_makes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS["packing.pack"], "second", lambda given, bits: loops([])(given.flip(1), bits))
    with second_device(), pytest.raises(AssertionError, match="not equal"):
        compare("packing.pack", "second")
