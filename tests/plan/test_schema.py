from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixprec.core import seals
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import KEEP, Format
from mixprec.plan.schema import ModulePlan, Plan, dumps, load_plan, save_plan


@pytest.fixture
def plan(tiny: Decoder) -> Plan:
    modules = {module.address: ModulePlan(format=Format(3, 64), why="default") for module in tiny.linears}
    modules["model.layers.1.mlp.up_proj"] = ModulePlan(format=KEEP, why="rules[0]: last_up")
    return Plan(model="tiny", method="rtn", modules=modules)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refusal(path: Path, inventory: Decoder) -> str:
    with pytest.raises(UserError) as caught:
        load_plan(path, inventory)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_saved_is_read(tmp_path: Path, plan: Plan, tiny: Decoder) -> None:
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json", tiny) == plan
    assert plan.formats["model.layers.1.mlp.up_proj"] is KEEP


def test_each_module_is_one_line(plan: Plan, tiny: Decoder) -> None:
    text = dumps(plan)
    for module in tiny.linears:
        assert len([line for line in text.splitlines() if f'"{module.address}"' in line]) == 1
    assert '    "model.layers.1.mlp.up_proj": {"format": "keep", "why": "rules[0]: last_up"},\n' in text
    assert seals.opened(json.loads(text), "text") == plan.model_dump(mode="json", exclude_none=True)


def test_an_edit_is_said_and_used(
    tmp_path: Path, plan: Plan, tiny: Decoder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    save_plan(path, plan)
    assert load_plan(path, tiny) == plan and not capsys.readouterr().err
    path.write_text(path.read_text().replace('"w3g64"', '"w4g64"', 1))
    assert load_plan(path, tiny) != plan
    assert "plan.json: was edited or damaged since mixprec wrote it; it is used" in " ".join(
        capsys.readouterr().err.split()
    )
    path.write_text(path.read_text().replace('"mixprec_schema": 1', '"mixprec_schema": 2'))
    with pytest.raises(UserError, match=r"plan\.json: was written by a later mixprec"):
        load_plan(path, tiny)


def test_why_may_be_left_out(tmp_path: Path, plan: Plan, tiny: Decoder) -> None:
    path = tmp_path / "plan.json"
    save_plan(path, plan)
    edit(path, ', "why": "rules[0]: last_up"', "")
    assert load_plan(path, tiny).formats == plan.formats


def test_all_problems_are_reported_at_once(tmp_path: Path, plan: Plan, tiny: Decoder) -> None:
    path = tmp_path / "plan.json"
    save_plan(path, plan)
    edit(path, '"format": "w3g64"', '"format": "w9g64"')
    edit(path, '"format": "keep"', '"fromat": "keep"')
    edit(path, '"method": "rtn"', '"method": "magic"')
    edit(path, '"model":', '"modle":')
    message = refusal(path, tiny)
    assert "[\"model.layers.0.self_attn.q_proj\"].format: format 'w9g64' is not known" in message
    assert '["model.layers.1.mlp.up_proj"].fromat: unknown key; did you mean format?' in message
    assert '["model.layers.1.mlp.up_proj"].format: this key is missing' in message
    assert "method: 'magic'" in message
    assert "modle: unknown key" in message
    assert "6 problems" in message


def test_unknown_and_missing_modules_are_named(tmp_path: Path, plan: Plan, tiny: Decoder) -> None:
    path = tmp_path / "plan.json"
    save_plan(path, plan)
    edit(path, '"model.layers.1.mlp.up_proj"', '"model.layers.1.mlp.upp_proj"')
    message = refusal(path, tiny)
    assert "model.layers.1.mlp.upp_proj (did you mean model.layers.1.mlp.up_proj?)" in message
    assert "without a format: model.layers.1.mlp.up_proj" in message


def test_a_module_written_twice_is_refused(tmp_path: Path, plan: Plan, tiny: Decoder) -> None:
    path = tmp_path / "plan.json"
    save_plan(path, plan)
    edit(path, '"model.layers.0.mlp.up_proj"', '"model.layers.1.mlp.up_proj"')
    assert "'model.layers.1.mlp.up_proj' is there twice" in refusal(path, tiny)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_no_plan_at_all(tmp_path: Path, tiny: Decoder, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    refusal(tmp_path / "plan.json", tiny)


def test_a_plan_of_a_newer_mixprec(tmp_path: Path, plan: Plan, tiny: Decoder) -> None:
    path = tmp_path / "plan.json"
    save_plan(path, plan)
    edit(path, '"schema_version": 1', '"schema_version": 2')
    assert "schema_version: 2" in refusal(path, tiny)
