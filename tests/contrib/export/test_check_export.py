"""The check of real peers' results: right ones pass, wrong bits, groups, grids and changed tensors are told apart.

The slow tests run the peers themselves, where their environments are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixprec.contrib.peers import client
from mixprec.numerics.formats import Format, parse_format
from mixprec.plan.schema import ModulePlan, Plan

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "peers"))
import check_export

NAMES = (
    "w2g32",
    "w3g32",
    "w3g64",
    "w4g64",
    "w8g64",
    "w3",
    "w4",
    "w3g64_asym",
    "w4g32_asym",
    "w4g64_asym",
    "w3g32_asym",
)


@pytest.fixture(scope="module")
def weight() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(64, 192, generator=generator) * 0.2 - 0.1
    positive = found[:32].abs_()
    positive[:, ::16] = -0.005
    return found


def rounded(weight: Tensor, name: str) -> Tensor:
    """Plain rounding as every peer knows it."""
    format = parse_format(name)
    assert isinstance(format, Format)
    groups = weight.reshape(-1, weight.shape[1] if format.group_size == -1 else format.group_size)
    top = groups.amax(1, keepdim=True).clamp(min=0)
    bottom = groups.amin(1, keepdim=True).clamp(max=0)
    if format.symmetric:
        top = torch.maximum(top, -bottom)
        bottom = -top
    step = (top - bottom) / (2**format.bits - 1)
    zero = torch.full_like(step, 2 ** (format.bits - 1)) if format.symmetric else (-bottom / step).round()
    codes = ((groups / step).round() + zero).clamp(0, 2**format.bits - 1)
    return ((codes - zero) * step).reshape(weight.shape)


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_is_told_from_every_other_one(weight: Tensor, name: str) -> None:
    planned = parse_format(name)
    assert isinstance(planned, Format)
    for other in NAMES:
        problems = list(check_export.off_grid(weight, rounded(weight, other), planned))
        assert bool(problems) == (other != name), (name, other, problems)
    assert list(check_export.off_grid(weight, weight, planned))


def test_kept_and_other_tensors_have_to_be_the_source_s(weight: Tensor) -> None:
    address = "model.layers.0.mlp.up_proj"
    plan = Plan(model="m", method="rtn", modules={address: ModulePlan(format="keep")})
    before = {f"{address}.weight": weight, "model.norm.weight": torch.ones(4)}
    assert list(check_export.differences(plan, before, before, scaled=False)) == []
    for name in before:
        after = {**before, name: before[name] * (1 + 1e-6)}
        (problem,) = check_export.differences(plan, before, after, scaled=False)
        assert problem == f"{name}: keep, but other bytes"


def test_a_missing_peer_is_told_with_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPREC_PEERS", str(tmp_path))
    with pytest.raises(client.PeerMissing, match=r"bash benchmarks/peers/build.sh gptqmodel"):
        client.run_peer({"peer": "gptqmodel", "method": "gptq", "model": "m", "out": "o"})


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "method"), [(peer, m) for peer, all_ in check_export.METHODS.items() for m in all_])
def test_the_peer_does_what_the_plan_says(peer: str, method: str, tmp_path: Path) -> None:
    reason = client.missing(peer)
    if reason:
        pytest.skip(reason)
    assert check_export.check(peer, method, tmp_path, seed=1) == []
