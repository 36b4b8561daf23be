from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scoring import OPTIONS, TREATMENTS, Tiny, calibrating

from mixprec.compress import candidates as solving
from mixprec.compress.stream import compress
from mixprec.models import locate
from mixprec.models.weights import weight_of
from mixprec.numerics.hessian import output_error
from mixprec.numerics.statistics import InputSums
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Treatment
from mixprec.walk import blocks


@pytest.mark.parametrize("label", ["1_q", "1_up", "2_down"])
@pytest.mark.parametrize("name", ["w3g16", "0.5"])
def test_a_candidate_is_what_compressing_this_module_alone_gives(
    tiny: Tiny, tmp_path: Path, label: str, name: str
) -> None:
    treatment = TREATMENTS[name]
    rule = {"match": label, "format": str(treatment.format), "method": treatment.method}
    if treatment.sparsity:
        rule["sparsity"] = str(treatment.sparsity)
    spec = PlanSpec.model_validate({"default": "keep", "rules": [rule]})
    plan = build_plan(spec, tiny.inventory, str(tiny.folder), "gptq")
    compress(str(tiny.folder), plan, tmp_path / "alone", calibration=calibrating(), options=OPTIONS)
    (address,) = plan.changed
    alone = load_file(tmp_path / "alone" / "model.safetensors")[f"{address}.weight"]
    torch.testing.assert_close(tiny.candidates.weight(address, name), alone, rtol=1e-4, atol=1e-5)


def test_finished_blocks_are_not_solved_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> list[str]:
        opened = blocks.open_blocks(str(tiny.folder), outside=("embedding", "norm"))
        identity, told = locate.identity(str(tiny.folder)), []
        restored = solving.restored

        def telling(block: Any, group: Any, *rest: Any) -> Any:
            told.append(group)
            return restored(block, group, *rest)

        monkeypatch.setattr(solving, "restored", telling)
        solving.make(opened, identity, tiny.inventory, TREATMENTS, calibrating(), OPTIONS, tmp_path)
        monkeypatch.setattr(solving, "restored", restored)
        return [group[0].label for group in told]

    assert len(make()) == 8
    whole = (tmp_path / "00002.safetensors").read_bytes()
    (tmp_path / "00002.safetensors").unlink()
    assert make() == ["2_q", "2_o", "2_gate", "2_down"]
    assert (tmp_path / "00002.safetensors").read_bytes() == whole
    assert make() == []


def test_what_awq_folds_into_norms_is_taken_back(tiny: Tiny) -> None:
    group = tiny.inventory.groups[0]
    with blocks.open_blocks(str(tiny.folder), outside=()).block(0) as block:
        x = torch.randn(400, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1.5, 1.5, 32)
        sums = InputSums(32)
        sums.add(x)
        stored = {module.address: torch.float32 for module in group}
        methods: Mapping[str, Treatment] = {
            method: Treatment(format="w3g16", method=method)  # type: ignore[arg-type]
            for method in ("awq", "rtn")
        }
        found = dict(solving.restored(block, group, methods, sums.result(), OPTIONS, stored))
        for module in group:
            weight = weight_of(block, module)
            hessian = sums.result().hessian
            error = {name: output_error(found[f"{module.address}|{name}"] - weight, hessian) for name in methods}
            assert error["awq"] < (0.7 if module.kind == "v" else 1) * error["rtn"]  # q and k are not clipped
