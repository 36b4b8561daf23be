"""The cost of attribution as a table and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixprec import cli
from mixprec.core.errors import UserError
from mixprec.importance.cost import cost
from mixprec.models.config import load_config
from mixprec.report.costs import about, cost_table
from mixprec.report.tables import to_markdown

PAPERS = [f"deepseek-ai/DeepSeek-R1-Distill-{name}" for name in ("Llama-8B", "Qwen-32B", "Llama-70B")]


def test_documented_costs_are_those_of_the_calculator() -> None:
    costs = [cost(load_config(name), "bfloat16", 45_179) for name in PAPERS]
    text = (Path(__file__).parents[2] / "docs" / "importance.md").read_text(encoding="utf-8")
    assert to_markdown(cost_table(costs)) in text


def test_a_table_of_one_model_names_no_model_in_its_columns() -> None:
    found = cost(load_config(PAPERS[0]), "bfloat16", 8000)
    table = cost_table([found])
    assert [column.group for column in table.columns] == ["", "", ""]
    parts = {row[0].text: (row[1].text, row[2].text) for row in table.rows}
    assert parts["weights"] == ("16.1 GB", "16.1 GB")
    assert parts["keys and values"] == ("1.05 GB", "–")
    assert "8,000 tokens" in about(found)


def mix(*arguments: str) -> None:
    cli.app(list(arguments), standalone_mode=False)


def test_explain_shows_what_importance_costs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    mix("explain", "quickstart")
    shown = capsys.readouterr().out
    assert "Attribution of smollm2-135m-instruct" in shown and "538 MB" in shown
    mix("explain", "table3_llama_8b")
    assert "Attribution" not in capsys.readouterr().out
    mix("explain", "--attribution", PAPERS[0])
    shown = capsys.readouterr().out
    assert "released code" in shown and "45,179 tokens" in shown


@pytest.mark.parametrize("arguments", [(), ("quickstart", "--attribution", PAPERS[0])])
def test_explain_wants_a_recipe_or_models(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="give a recipe, or models"):
        mix("explain", *arguments)
