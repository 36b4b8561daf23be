"""Tensor functions on another device: what they make lies there, and has the CPU's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from second_device import second_device
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mixprec.compress.anyk import anyk
from mixprec.compress.awq import search_scale
from mixprec.compress.clipping import search_clip
from mixprec.compress.ggml import ggml
from mixprec.compress.gptaq import gptaq
from mixprec.compress.gptq import gptq
from mixprec.compress.magnitude import magnitude
from mixprec.compress.rtn import rtn
from mixprec.compress.sparsegpt import refine, sparsegpt
from mixprec.compress.wanda import wanda
from mixprec.numerics import affine, packing, storage
from mixprec.numerics.codebook import dequantize_codebook
from mixprec.numerics.formats import KEEP, AffineFormat, AnyFormat, CodebookFormat, Format, GgmlFormat
from mixprec.numerics.ggml import dequantize_ggml
from mixprec.numerics.groupwise import Search, fit
from mixprec.numerics.hessian import factorize, output_error, relative_output_error
from mixprec.numerics.plain import Plain
from mixprec.numerics.sparsity import Sparsity
from mixprec.numerics.spectrum import hill_alpha
from mixprec.numerics.statistics import InputStatistics, InputSums
from mixprec.numerics.storage import AnyQuantized

FORMAT = Format(3, 16, symmetric=False)


def statistics(inputs: Tensor) -> InputStatistics:
    sums = InputSums(inputs.shape[1], drift=True, device=inputs.device)
    sums.add(inputs, torch.linspace(0.5, 1, len(inputs), device=inputs.device), full=inputs * 1.01 + 0.02)
    return sums.result()


def by_gptaq(weight: Tensor, inputs: Tensor) -> Any:
    found = statistics(inputs)
    assert found.drift is not None
    factor = factorize(found.hessian, act_order=True, group_size=16)
    return gptaq(weight, factor, FORMAT, found.drift)


def by_sparsegpt(weight: Tensor, inputs: Tensor) -> Any:
    hessian = statistics(inputs).hessian
    found = sparsegpt(weight, factorize(hessian), Sparsity(0.5), FORMAT)
    return found, refine(weight, found.weight, found.mask, hessian, steps=2, damping=0.03)


def by_awq(weight: Tensor, inputs: Tensor) -> Any:
    tie = torch.arange(weight.shape[1], device=weight.device) // 2
    found = search_scale([weight, weight * 2], [FORMAT, KEEP], statistics(inputs), grid=4, tie=tie, screened_rows=8)
    return found.scale, found.loss


def by_anyk(weight: Tensor, inputs: Tensor) -> Any:
    format = CodebookFormat(3, 16)
    return dequantize_codebook(anyk(weight, statistics(inputs).hessian.diagonal(), format), format, torch.float32)


def by_ggml(weight: Tensor, inputs: Tensor) -> Any:
    found = ggml(weight, statistics(inputs).hessian.diagonal(), GgmlFormat("q4_0"))
    return dequantize_ggml(found, torch.float32).to(weight.device)


def packed(weight: Tensor, inputs: Tensor) -> Any:
    codes = rtn(weight, FORMAT).codes
    words = packing.pack(codes, 3)
    return words, packing.unpack(words, 3, codes.shape[1])


def stored(weight: Tensor, inputs: Tensor) -> Any:
    grid, book = rtn(weight, FORMAT), anyk(weight, None, CodebookFormat(3, 16))
    pruned = Plain(magnitude(weight, Sparsity(0.5)))
    given: list[tuple[AnyQuantized, AnyFormat]] = [(grid, FORMAT), (book, CodebookFormat(3, 16)), (pruned, KEEP)]
    tensors = [storage.stored(quantized, format, inputs[0].exp()) for quantized, format in given]
    shape = (len(weight), weight.shape[1])
    return tensors, [
        storage.restored(each, format, shape, torch.float32) for each, (_, format) in zip(tensors, given, strict=True)
    ]


CASES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "statistics": lambda weight, inputs: statistics(inputs),
    "factor": lambda weight, inputs: factorize(statistics(inputs).hessian, act_order=True),
    "errors": lambda weight, inputs: (
        output_error(weight, statistics(inputs).hessian),
        relative_output_error(weight, weight.round(), statistics(inputs).hessian),
    ),
    "grids": lambda weight, inputs: fit(weight, FORMAT, search=Search(), column_weights=inputs.square().sum(0)),
    "rtn": lambda weight, inputs: rtn(weight, FORMAT),
    "affine": lambda weight, inputs: affine.dequantize_affine(
        affine.quantize_affine(weight, AffineFormat(3, 16)), AffineFormat(3, 16), torch.float32
    ),
    "gptq": lambda weight, inputs: gptq(weight, factorize(statistics(inputs).hessian), FORMAT),
    "gptaq": by_gptaq,
    "awq": by_awq,
    "clipping": lambda weight, inputs: search_clip(weight, statistics(inputs).hessian, FORMAT),
    "anyk": by_anyk,
    "ggml": by_ggml,
    "sparsegpt": by_sparsegpt,
    "wanda": lambda weight, inputs: wanda(weight, inputs.square().sum(0), Sparsity(0.5, (2, 4))),
    "magnitude": lambda weight, inputs: magnitude(weight, Sparsity(0.5)),
    "spectrum": lambda weight, inputs: hill_alpha(weight, "median"),
    "packing": packed,
    "storage": stored,
}


@pytest.mark.parametrize("case", CASES)
def test_a_function_gives_the_cpus_values_on_the_tensors_device(device: str, case: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(24, 64, generator=generator), torch.randn(200, 64, generator=generator)
    expected = tree_leaves(CASES[case](weight, inputs))
    found = tree_leaves(CASES[case](weight.to(device), inputs.to(device)))
    for there, here in zip(found, expected, strict=True):
        if not isinstance(there, Tensor):
            assert there == pytest.approx(here, rel=1e-3)
            continue
        assert there.device.type == device
        if here.dtype.is_floating_point:
            torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
        else:  # a code at the edge of two may fall to either side where sums have another order
            assert float((there.cpu() != here).float().mean()) < 0.01


def test_the_second_device_is_as_strict_as_a_gpu() -> None:
    with second_device() as name:
        there, here = torch.ones(3, 3, device=name), torch.ones(3, 3)
        for wrong in (
            lambda: there + here,
            lambda: here + there,
            lambda: there @ here,
            lambda: torch.cat([there, here]),
            lambda: here[torch.zeros(1, dtype=torch.long, device=name)],
            lambda: there.index_put_((torch.tensor([0]),), torch.ones(1, 3)),
            lambda: torch.randn(2, device=name, generator=torch.Generator()),
            lambda: there.normal_(generator=torch.Generator()),
            lambda: torch.where(here > 0, there, there),
            lambda: torch.nn.functional.linear(there, here),
        ):
            with pytest.raises(RuntimeError, match=r"on one device|a generator of cpu"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert float(there.sum()) == 9 and there[torch.tensor([0, 2])].device.type == name
        assert (there * torch.tensor(2.0)).tolist() == (here * 2).tolist()
        view = there[0]
        view.zero_()
        assert there.cpu()[0].sum() == 0
        here.copy_(there)
        assert type(here) is Tensor and here[0].sum() == 0
