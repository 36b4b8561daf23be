"""Bits and bytes, against numbers computed by hand and against the tensors that quantize() makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maps import linear

from mixprec.compress.anyk import anyk
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.numerics.formats import KEEP, WHOLE_ROW, AnyFormat, CodebookFormat, Format
from mixprec.numerics.groupwise import quantize
from mixprec.plan.bits import Account, account, storage
from mixprec.plan.rules import PlanSpec, build_plan


def account_of(inventory: Decoder, default: str, rules: dict[str, str] | None = None) -> Account:
    made = PlanSpec.model_validate(
        {"default": default, "rules": [{"match": match, "format": f} for match, f in (rules or {}).items()]}
    )
    return account(build_plan(made, inventory, "model", "rtn"), inventory)


# SmolLM2-135M: per block q and o 576 x 576, k and v 192 x 576, gate, up and down 1536 x 576 = 3,538,944
# weights; 30 blocks. Besides: embeddings 49152 x 576 (tied to the head), 61 norms of 576.
SMOLLM2_LINEAR = 106_168_320
SMOLLM2_OTHER = 28_311_552 + 35_136

# Llama 8B: per block q and o 4096 x 4096, k and v 1024 x 4096, gate, up and down 14336 x 4096 = 218,103,808;
# 32 blocks. Besides: embeddings and head 128256 x 4096 each, 65 norms of 4096.
LLAMA_LINEAR = 6_979_321_856
LLAMA_OTHER = 2 * 525_336_576 + 266_240


@pytest.fixture(scope="module")
def smollm2_shapes() -> Decoder:
    return decoder_of(load_config(BUNDLED))


def test_smollm2_kept(smollm2_shapes: Decoder) -> None:
    found = account_of(smollm2_shapes, "keep")
    assert (found.code_bits, found.effective_bits) == (16, 16)
    assert found.packed_bytes == found.dense_bytes == 2 * (SMOLLM2_LINEAR + SMOLLM2_OTHER) == 269_030_016


def test_smollm2_in_three_bits(smollm2_shapes: Decoder) -> None:
    found = account_of(smollm2_shapes, "w3g64")
    assert (found.code_bits, found.effective_bits) == (3, 3.25)
    # 106168320 * 3 / 8 of codes, 106168320 / 64 * 2 of scales, the rest in 16 bits.
    assert found.packed_bytes == 39_813_120 + 3_317_760 + 56_693_376
    assert found.dense_bytes == 269_030_016
    assert found.formats["w3g64"].modules == 210
    assert found.formats["w3g64"].weights == SMOLLM2_LINEAR


def test_smollm2_asymmetric_with_a_smaller_last_group(smollm2_shapes: Decoder) -> None:
    found = account_of(smollm2_shapes, "w4g128_asym")
    # 576 = 4.5 x 128, so 5 groups; 1536 = 12 x 128. Rows per block with 576 columns: 2 x 576 + 2 x 192
    # + 2 x 1536 = 4608, with 1536 columns: 576. Groups: 30 x (4608 x 5 + 576 x 12) = 898560, 20 bits each.
    assert found.code_bits == 4
    assert found.effective_bits == pytest.approx(4 + 898_560 * 20 / SMOLLM2_LINEAR, rel=1e-12)
    assert found.packed_bytes == SMOLLM2_LINEAR // 2 + 898_560 * 2 + 898_560 // 2 + 2 * SMOLLM2_OTHER


def test_llama_8b_with_the_last_mlp_kept(llama_8b: Decoder) -> None:
    found = account_of(llama_8b, "w3g128", {"last_mlp": "keep"})
    kept = 3 * 14336 * 4096
    rest = LLAMA_LINEAR - kept
    assert found.code_bits == pytest.approx((3 * rest + 16 * kept) / LLAMA_LINEAR, rel=1e-12)
    assert found.effective_bits == pytest.approx((3.125 * rest + 16 * kept) / LLAMA_LINEAR, rel=1e-12)
    assert round(found.code_bits, 4) == 3.3281
    assert found.packed_bytes == rest * 3 // 8 + rest // 64 + 2 * kept + 2 * LLAMA_OTHER
    assert found.dense_bytes == 16_060_522_496  # total_size in the index of the model's own checkpoint
    assert {name: total.modules for name, total in found.formats.items()} == {"w3g128": 221, "keep": 3}
    assert sum(total.weights for total in found.formats.values()) == LLAMA_LINEAR


def test_llama_8b_with_only_32_up_compressed(llama_8b: Decoder) -> None:
    found = account_of(llama_8b, "keep", {"32_up": "w3g128"})
    up = 14336 * 4096
    assert found.code_bits == pytest.approx(16 - 13 * up / LLAMA_LINEAR, rel=1e-12)
    assert found.dense_bytes - found.packed_bytes == 2 * up - (up * 3 // 8 + up // 64)
    address = "model.layers.31.mlp.up_proj"
    assert found.modules[address].code_bits == 3
    assert found.modules[address].effective_bits == 3.125
    assert found.modules[address].bytes == up * 3 // 8 + up // 64


@given(
    st.integers(1, 5),
    st.integers(1, 70),
    st.builds(Format, st.integers(2, 8), st.sampled_from([WHOLE_ROW, 1, 3, 8, 64]), st.booleans()),
)
def test_a_module_takes_what_its_tensors_take(rows: int, columns: int, format: Format) -> None:
    codes, grid = quantize(torch.ones(rows, columns), format)
    found = storage(linear(1, "up", rows, columns), format)
    assert found.weights == codes.numel()
    assert found.codes == codes.numel() * format.bits
    assert found.scales == grid.scales.numel() * 8 * grid.scales.itemsize
    assert found.zeros == (0 if grid.zeros is None else grid.zeros.numel() * format.bits)
    packed = [np.packbits(np.zeros(bits, bool)).nbytes for bits in (found.codes, found.scales, found.zeros)]
    assert found.bytes == sum(packed)


@given(
    st.integers(1, 3),
    st.integers(1, 20),
    st.builds(CodebookFormat, st.integers(2, 4), st.sampled_from([WHOLE_ROW, 1, 3, 8, 64])),
)
def test_a_module_with_code_books_takes_what_its_tensors_take(rows: int, columns: int, format: CodebookFormat) -> None:
    codes, codebook, scales, offsets = anyk(torch.ones(rows, columns), None, format)
    found = storage(linear(1, "up", rows, columns), format)
    assert found.codes == codes.numel() * format.bits
    assert found.scales == 8 * scales.nbytes
    assert found.zeros == 8 * offsets.nbytes
    assert found.codebooks == 8 * codebook.nbytes
    total = found.codes + 8 * (scales.nbytes + offsets.nbytes + codebook.nbytes)
    assert found.effective_bits == pytest.approx(total / codes.numel(), rel=1e-12)
    assert found.bytes == -(-found.codes // 8) + scales.nbytes + offsets.nbytes + codebook.nbytes


def test_any4_by_hand() -> None:
    found = storage(linear(1, "up", 1536, 576), CodebookFormat(4, 64))
    assert found.code_bits == 4
    assert found.effective_bits == pytest.approx(4 + 32 / 64 + 16 * 16 / 576, rel=1e-12)


@pytest.mark.parametrize(
    ("format", "sparsity", "code_bits", "effective_bits"),
    [
        (KEEP, 0.5, 8, 9),  # half of the weights in 16 bits, and one bit for each weight
        (Format(4, 64), 0.5, 2, 2 + 1 + 0.25),
        (CodebookFormat(4, 64), 0.5, 2, 2 + 1 + 0.5 + 2),  # rows of 128: a book of 16 entries is 2 bits per weight
        (Format(2, 64), 0.5, 2, 2.25),  # 1 + 1 bits are not less than 2
        (Format(4, 64), 0.125, 4, 4.25),
        (KEEP, 0.0, 16, 16),
        (KEEP, 1.0, 0, 1),
    ],
)
def test_zeros_are_left_out_where_that_saves_bits(
    format: AnyFormat, sparsity: float, code_bits: float, effective_bits: float
) -> None:
    found = storage(linear(1, "up", 4, 128), format, sparsity)
    assert (found.code_bits, found.effective_bits) == (code_bits, effective_bits)
    assert found.bytes == 4 * 128 * effective_bits / 8


def test_a_plan_for_another_model_is_refused(tiny: Decoder, llama_8b: Decoder) -> None:
    plan = build_plan(PlanSpec.model_validate({"default": "w3"}), llama_8b, "r1", "rtn")
    with pytest.raises(UserError, match=r"plan for r1.*doesn't have.*model\.layers\.2\."):
        account(plan, tiny)


def test_pruned_modules_are_listed_apart_and_save_nothing(tiny: Decoder) -> None:
    spec = PlanSpec.model_validate(
        {"default": "keep", "rules": [{"match": "1_mlp", "sparsity": "2:4", "method": "magnitude"}]}
    )
    found = account(build_plan(spec, tiny, "tiny", "rtn"), tiny)
    assert {name: total.modules for name, total in found.formats.items()} == {"keep": 11, "keep, pruned": 3}
    assert found.packed_bytes == found.dense_bytes
