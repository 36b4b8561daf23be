from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from mixprec.report.tables import Cell, Column, Table, behaviour_table, to_markdown, top_modules_table, variant_table
from mixprec.report.terminal import rich_table
from mixprec.results.run import RunResult


def cells(table: Any, name: str) -> dict[str, Cell]:
    row = next(row for row in table.rows if row[0].text == name)
    titles = [f"{column.group} {column.title}".strip() for column in table.columns]
    return dict(zip(titles, row, strict=True))


def test_cells_are_formatted(summary: dict[str, Any]) -> None:
    row = cells(variant_table(summary), "w3")
    assert row["variant"].note.startswith("every linear in 3 bits")
    assert (row["code bits"].text, row["effective bits"].text) == ("3.00", "3.25")
    assert row["size"] == Cell("99.8 MB", "disk 269 MB", value=summary["variants"]["w3"]["bytes"])
    assert row["held-out traces KL mean"] == Cell("1.72", "[1.63, 1.81]")
    assert row["held-out traces top-1 agreement"].text == "60.6%"
    assert row["text perplexity"].text == "83.86"


def test_only_variants_of_the_whole_model_compete_for_bold(summary: dict[str, Any]) -> None:
    table = variant_table(summary)
    for title in ("held-out traces perplexity", "held-out traces KL p99", "held-out traces top-1 agreement"):
        title = title.replace("KL p99", "KL 99th pct")
        bold = [row[0].text for row in table.rows if cells(table, row[0].text)[title].strong]
        assert bold == ["w3_last_mlp"]


def test_columns_without_values_go(summary: dict[str, Any]) -> None:
    for variant in summary["variants"].values():
        variant |= {"kl_mean": None, "kl_mean_ci": None, "text": None}
    titles = [f"{column.group} {column.title}" for column in variant_table(summary).columns]
    assert not any("KL mean" in title or title.startswith("text") for title in titles)
    assert "held-out traces perplexity" in titles


def test_without_held_out_traces_the_main_numbers_are_the_texts(summary: dict[str, Any]) -> None:
    summary["evaluation"]["traces"] = {"tokens": 0, "passages": 0}
    groups = [group for group, _ in variant_table(summary).groups]
    assert groups == ["", "text"]


def test_a_behaviour_without_tokens_is_left_out(summary: dict[str, Any]) -> None:
    for variant in summary["variants"].values():
        variant["behaviours"]["example_testing"] = None
    assert [c.group for c in behaviour_table(summary).columns[1:]] == [
        "Backtracking", "Uncertainty estimation", "Adding knowledge"
    ]  # fmt: skip


def test_one_missing_value_is_a_dash(summary: dict[str, Any]) -> None:
    summary["variants"]["w3_random"]["perplexity"] = None
    assert cells(variant_table(summary), "w3_random")["held-out traces perplexity"].text == "–"


def test_kl_per_behaviour(summary: dict[str, Any]) -> None:
    row = cells(behaviour_table(summary), "w3_last_mlp")
    assert row["Backtracking 2,100 tokens"] == Cell("1.05", "[0.891, 1.21]", strong=True)
    assert len(row) == 5


def test_modules_that_behaviours_share_stand_out() -> None:
    def top(*labels: str) -> dict[str, Any]:
        return {"top_modules": [{"label": label, "relative": 0.0421} for label in labels]}

    table = top_modules_table({"behaviours": {"backtracking": top("30_up", "2_q"), "adding_knowledge": top("30_up")}})
    assert table.rows[0] == [Cell("1"), Cell("30_up", "4.21%", True), Cell("30_up", "4.21%", True)]
    assert table.rows[1] == [Cell("2"), Cell("2_q", "4.21%"), Cell("–")]


def test_the_interval_of_a_rank_is_noted_where_the_rank_moves() -> None:
    modules = [{"label": "a", "relative": 0.1, "rank_interval": bounds} for bounds in ([1, 4], [2, 2], None)]
    table = top_modules_table({"behaviours": {"b": {"top_modules": modules}}})
    assert [row[1].note for row in table.rows] == ["10.00%, 1–4", "10.00%", "10.00%"]


def test_markdown_escapes_pipes_and_marks_the_best(summary: dict[str, Any]) -> None:
    summary["variants"] = {"a|b\nc": summary["variants"]["w3"]} | summary["variants"]
    text = to_markdown(variant_table(summary))
    lines = text.splitlines()
    assert len(lines) == 2 + len(summary["variants"])
    assert "| a\\|b c " in text and "**1.31** [1.24, 1.38]" in text
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_empty_summaries_give_empty_tables() -> None:
    for build in (variant_table, behaviour_table, top_modules_table):
        assert build({}).rows == [] and to_markdown(build({})) == ""


def test_the_terminal_shows_tables_and_verdict_and_takes_names_literally(summary: dict[str, Any]) -> None:
    summary["variants"]["[bold]x[/]"] = summary["variants"].pop("w3_random")
    console = Console(record=True, width=120, file=None, quiet=False)
    with console.capture() as captured:
        console.print(RunResult(Path("run"), summary))
    text = captured.get()
    assert "[bold]x[/]" in text and "30_up 3.25%" in text and "1.31 [1.24, 1.38]" in text
    words = " ".join(text.split())
    assert "The distilled model" not in words
    assert RunResult(Path("run"), summary | {"distilled": {"traces": 4}}).notes()[0] == (
        "• The distilled model is in run/distilled."
    )
    assert "• Checkpoints in run/variants/NAME/checkpoint: w3" in words
    assert "• Least damage: w3_last_mlp, KL 1.31 [1.24, 1.38] at" in words and "; most: w3, KL 1.72" in words
    assert "excludes 0" not in words  # that is for the page
    with console.capture() as captured:
        console.print(RunResult(Path("run"), {"variants": {}, "behaviours": {}}))
    assert captured.get() == ""


def test_a_table_wider_than_the_terminal_comes_in_parts() -> None:
    """No cell is broken: each part has the rows' names in front and fits."""
    columns = [Column("Model", numeric=False), *(Column(f"benchmark {i} (n=30)", "Accuracy") for i in range(6))]
    rows = [[Cell(name), *(Cell(f"{i}2.2", "[37.2, 47.2]") for i in range(6))] for name in ("R1-Llama", "R1-Qwen")]
    shown = {}
    for width in (80, 240):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(rich_table(Table(columns, rows), "Table 1"))
        shown[width] = captured.get()
    assert max(map(len, shown[80].splitlines())) <= 80
    assert shown[80].count("R1-Qwen") == 2 and shown[240].count("R1-Qwen") == 1
    assert all(shown[80].count(f"{i}2.2 [37.2, 47.2]") == 2 for i in range(6))
    assert shown[80].count("Table 1") == 1
