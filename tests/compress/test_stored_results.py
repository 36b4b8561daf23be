"""What every method makes comes back to the bit from the tensors that it is stored in."""

from __future__ import annotations

import pytest
import torch

from mixprec.compress.methods import solve
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs
from mixprec.numerics import storage
from mixprec.numerics.formats import fitting
from mixprec.numerics.statistics import InputSums
from mixprec.plan.methods import METHODS, pruners
from mixprec.plan.schema import Treatment

TREATMENTS = [
    *({"format": text, "method": name} for text in ("w3g16", "w4g24_asym", "w2") for name in ("rtn", "gptq", "awq")),
    {"format": "w3g16", "method": "gptaq"},
    {"format": "any3g16", "method": "anyk"},
    {"format": "any4", "method": "anyk"},
    {"format": "q8_0", "method": "ggml"},
    {"format": "q4_k", "method": "ggml"},
    {"format": "w4g16", "sparsity": 0.5, "method": "sparsegpt"},
    *({"format": "keep", "sparsity": share, "method": name} for share in (0.02, "2:4") for name in pruners()),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("said", TREATMENTS, ids=lambda said: "-".join(map(str, said.values())))
def test_a_result_comes_back_to_the_bit(said: dict[str, object], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    treatment = Treatment.model_validate(said)
    assert treatment.problem() is None
    inputs = torch.randn(300, 64, generator=generator) * torch.logspace(-1, 1, 64)
    sums = InputSums(64, drift=True)
    sums.add(inputs, None, full=inputs * 1.01)
    given, options = GroupInputs(sums.result(), SolveOptions()), SolveOptions()
    weights = {
        f"model.layers.0.self_attn.{name}_proj": torch.randn(rows, 64, generator=generator).to(dtype)
        for name, rows in (("q", 24), ("k", 8))
    }
    for address, found in solve(weights, dict.fromkeys(weights, treatment), given, options).items():
        format, shape = fitting(treatment.format, 64), (len(weights[address]), 64)
        for scale in (None, torch.rand(64, generator=generator) + 0.5):
            tensors = storage.stored(found.quantized, format, scale)
            again = storage.restored(tensors, format, shape, dtype)
            expected = storage.unscaled(found.restored, scale)
            assert torch.equal(again.view(torch.uint8), expected.view(torch.uint8))
            assert sum(tensor.nbytes for tensor in tensors.values()) <= weights[address].nbytes + 64 * 4


def test_every_method_is_among_them() -> None:
    assert {said["method"] for said in TREATMENTS} == {*METHODS}
