"""mixprec export-plan: to a file, to the terminal, and one clear line for what can't be exported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny
import yaml

import mixprec.cli.export  # noqa: F401  (registers the verb)
from mixprec import cli
from mixprec.models.maps import decoder_of
from mixprec.plan.schema import ModulePlan, Plan, save_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    config = tiny.build(hidden_size=64, intermediate_size=96, head_dim=16).model.config
    config.save_pretrained(folder / "model")
    chosen = {module.address: ModulePlan(format="w3g32") for module in decoder_of(config).linears}
    chosen["model.layers.1.mlp.up_proj"] = ModulePlan(format="keep")
    save_plan(folder / "plan.json", Plan(model=str(folder / "model"), method="rtn", modules=chosen))
    return folder / "plan.json"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["mixprec", "export-plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_a_file(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "recipe.yaml"
    assert run(monkeypatch, "--to", "llmcompressor", plan, "--out", target, "--method", "gptq") == 0
    recipe = yaml.safe_load(target.read_text(encoding="utf-8"))
    assert list(recipe["mixprec_stage"]["mixprec_modifiers"]) == ["GPTQModifier"]


def test_the_terminal(plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--to", "gptqmodel", plan) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["weight_only"] == {"method": "rtn"}
    assert list(config["dynamic"]) == [r"-:^model\.layers\.1\.mlp\.up_proj$"]


def test_mistakes(plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--to", "llamacpp", plan) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "plan.json: model.layers.0.self_attn.q_proj: w3g32: " in error
    assert run(monkeypatch, "--to", "gptqmodel", plan, "--method", "autoround") == 2
    assert "choose with --method" in capsys.readouterr().err
    assert run(monkeypatch, "--to", "exllama", plan) == 2
