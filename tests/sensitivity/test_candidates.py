from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scoring import OPTIONS, TREATMENTS, Tiny, calibrating

from mixprec.compress import candidates as solving
from mixprec.compress.candidatefiles import Candidates
from mixprec.compress.solving import GroupInputs
from mixprec.compress.stream import compress
from mixprec.models.model import Model
from mixprec.models.weights import weight_of
from mixprec.numerics.hessian import output_error
from mixprec.numerics.statistics import InputSums
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Treatment


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
    compress(Model(tiny.folder), plan, tmp_path / "alone", calibration=calibrating(), options=OPTIONS)
    (address,) = plan.changed
    alone = load_file(tmp_path / "alone" / "model.safetensors")[f"{address}.weight"]
    torch.testing.assert_close(tiny.candidates.weight(address, name), alone, rtol=1e-4, atol=1e-5)


def test_finished_blocks_are_not_solved_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> list[str]:
        opened = Model(tiny.folder).open_blocks(("embedding", "norm"))
        identity, told = Model(tiny.folder).identity, []
        solved = solving.solved

        def telling(block: Any, group: Any, *rest: Any) -> Any:
            told.append(group)
            return solved(block, group, *rest)

        monkeypatch.setattr(solving, "solved", telling)
        solving.make(opened, identity, tiny.inventory, TREATMENTS, calibrating(), OPTIONS, tmp_path)
        monkeypatch.setattr(solving, "solved", solved)
        return [group[0].label for group in told]

    assert len(make()) == 8
    whole = (tmp_path / "00002.safetensors").read_bytes()
    (tmp_path / "00002.safetensors").unlink()
    assert make() == ["2_q", "2_o", "2_gate", "2_down"]
    assert (tmp_path / "00002.safetensors").read_bytes() == whole
    assert make() == []


EVERY_KIND = {
    "w2g16": Treatment(format="w2g16", method="gptq"),
    "w3g8_asym": Treatment(format="w3g8_asym", method="gptaq"),
    "w4": Treatment(format="w4", method="rtn"),
    "scaled": Treatment(format="w3g16_asym", method="awq"),
    "any3g16": Treatment(format="any3g16", method="anyk"),
    "q4_0": Treatment(format="q4_0", method="ggml"),
    "q4_k": Treatment(format="q4_k", method="ggml"),  # rows of 32 take q5_0 in its place, rows of 48 nothing
    "0.5": Treatment(format="keep", sparsity="0.5", method="sparsegpt"),
    "2:4": Treatment(format="w4g16", sparsity="2:4", method="sparsegpt"),
    "0.25": Treatment(format="keep", sparsity="0.25", method="wanda"),
}


def made(tiny: Tiny, folder: Path) -> Candidates:
    opened = Model(tiny.folder).open_blocks(("embedding", "norm"))
    return solving.make(opened, "x", tiny.inventory, EVERY_KIND, calibrating(), OPTIONS, folder)


def test_codes_on_disk_are_the_weights_that_were_solved(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: dict[tuple[str, str], torch.Tensor] = {}
    solved = solving.solved

    def watched(*arguments: Any) -> Any:
        for address, name, found in solved(*arguments):
            expected[address, name] = found.restored.clone()
            yield address, name, found

    monkeypatch.setattr(solving, "solved", watched)
    found = made(tiny, tmp_path)
    assert len(expected) == len(tiny.addresses) * len(EVERY_KIND)
    for (address, name), weight in expected.items():
        assert found.weight(address, name).dtype == weight.dtype
        assert torch.equal(found.weight(address, name), weight), (address, name)
    block = found.block(2, ["w4", "0.5"])
    assert {name for by_name in block.values() for name in by_name} == {"w4", "0.5"}
    for address, by_name in block.items():
        assert all(torch.equal(weight, expected[address, name]) for name, weight in by_name.items())
    dense = sum(weight.nbytes for weight in expected.values())
    assert sum(path.stat().st_size for path in found.files(tiny.inventory)) < 0.5 * dense


def test_files_of_another_layout_are_made_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "LAYOUT", "dense")
    before = made(tiny, tmp_path)
    monkeypatch.undo()
    save_file({f"{tiny.addresses[0]}|w4": torch.zeros(3)}, tmp_path / "00001.safetensors")
    after = made(tiny, tmp_path)
    assert after.digest != before.digest
    assert after.weight(tiny.addresses[0], "w4").shape == (32, 32)


def test_what_awq_folds_into_norms_is_taken_back(tiny: Tiny) -> None:
    group = tiny.inventory.groups[0]
    with Model(tiny.folder).open_blocks(()).block(0) as block:
        x = torch.randn(400, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1.5, 1.5, 32)
        sums = InputSums(32)
        sums.add(x)
        stored = {module.address: torch.float32 for module in group}
        methods: Mapping[str, Treatment] = {
            method: Treatment(format="w3g16", method=method)  # type: ignore[arg-type]
            for method in ("awq", "rtn")
        }
        found = {
            (address, name): made.restored
            for address, name, made in solving.solved(
                block, group, methods, GroupInputs(sums.result(), OPTIONS), OPTIONS, stored
            )
        }
        for module in group:
            weight = weight_of(block, module)
            hessian = sums.result().hessian
            error = {name: output_error(found[module.address, name] - weight, hessian) for name in methods}
            assert error["awq"] < (0.7 if module.kind == "v" else 1) * error["rtn"]  # q and k are not clipped
