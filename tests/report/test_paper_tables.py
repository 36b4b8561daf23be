"""The paper's tables from results whose numbers are the paper's own."""

from __future__ import annotations

import csv
import html.parser
import io
import re
from typing import Any

import pytest

from mixprec.core.errors import UserError
from mixprec.report import paper
from mixprec.report.benchmarks import overview
from mixprec.report.folder import RunFolder
from mixprec.report.html import render_report
from mixprec.report.pagecharts import compute_rows
from mixprec.report.render import FORMATS, to_csv, to_html, to_latex
from mixprec.report.tables import Cell, Column, Table


def entry(title: str, n: int, **metrics: float) -> dict[str, Any]:
    values = {
        name: {"mean": v, "se": 0.01, "se_seeds": 0.02, "ci": [v - 0.05, v + 0.05], "passes": [v], "n": n, "seeds": 3}
        for name, v in metrics.items()
    }
    ends = {"short": 0.9, "long": 0.2, "ratio": 5.4, "short_ci": [0.8, 1], "long_ci": [0.1, 0.3], "ratio_ci": [5, 6]}
    return {
        "title": title,
        "rows": "digest",
        "paper_questions": True,
        **values,
        "at_k": {f"{kind}@{k}": {"mean": 0.5, "ci": None, "n": n} for k in (1, 2) for kind in ("pass", "maj")},
        "outcomes": {"correct": 1, "wrong": 2, "none": 3},
        "diagnosis": {
            "n": 3 * n, "cut": 4, "collapsed": 2, "thinking": {"open": 1}, "gibberish": 0.001,
            "tokens": {"mean": 4321.0},
        },
        "compute": {"unit": "tokens", "shares": {s: {m: {**ends, "n": 9} for m in metrics} for s in ("0.3", "0.2")}},
    }  # fmt: skip


def result(model: str, scores: tuple[float, ...], musique: tuple[float, float] | None = None, **labels: str) -> Any:
    names = (("aime_2024", "AIME 2024", 30), ("folio", "FOLIO", 203), ("temporal_sequences", "Temporal", 250))
    found = {name: entry(title, n, accuracy=s / 100) for (name, title, n), s in zip(names, scores, strict=False)}
    if musique:
        found["musique"] = entry("MuSiQue", 100, em=musique[0] / 100, f1=musique[1] / 100)
    mean = sum(scores) / len(scores) / 100
    return {
        "labels": {"model": model, **labels},
        "benchmarks": found,
        "average": {"mean": mean, "ci": [mean - 0.03, mean + 0.03], "n": 483},
    }


LLAMA = [
    result("R1-Distill-Llama", (42.2, 71.9, 81.5), (0.0, 4.43), parameters="8B", compression="", kept=""),
    result("R1-Distill-Llama", (47.8, 68.0, 84.0), (0.3, 5.05), parameters="8B", compression="4-bit AWQ", kept=""),
    result("R1-Distill-Qwen", (46.7, 78.0, 75.6), (0.0, 3.57), parameters="7B", compression=""),
]


def text(table: Table) -> list[list[str]]:
    return [[("*" if cell.strong else "") + cell.text for cell in row] for row in table.rows]


def test_table_1() -> None:
    made = paper.table(1, LLAMA)
    assert [column.title for column in made.columns] == [
        "Model", "#Param", "Compression", "AIME 2024 (n=30)", "FOLIO (n=203)", "Temporal (n=250)", "Avg",
        "EM (n=100)", "F1 (n=100)",
    ]  # fmt: skip
    assert made.groups == [("Models", 3), ("Accuracy", 4), ("MuSiQue", 2)]
    assert text(made) == [
        ["R1-Distill-Llama", "8B", "-", "42.2", "*71.9", "81.5", "65.2", "0.0", "4.4"],
        ["R1-Distill-Llama", "8B", "4-bit AWQ", "*47.8", "68.0", "*84.0", "*66.6", "*0.3", "*5.0"],
        ["R1-Distill-Qwen", "7B", "-", "46.7", "78.0", "75.6", "66.8", "0.0", "3.6"],
    ]
    assert made.rows[0][3].note == "[37.2, 47.2]"


def test_no_average_of_other_benchmarks() -> None:
    part = result("a", (42.2, 71.9))
    assert [row[-3].text for row in paper.table(1, [part]).rows] == ["–"]
    assert [row[5].text for row in paper.table(1, [part]).rows] == ["–"]


def test_tables_3_and_4() -> None:
    made = paper.table(3, [result("L", (20.0, 63.1, 63.6), component="32_up", description="1st overall")])
    assert [cell.text for cell in made.rows[0]] == ["32_up", "1st overall", "20.0", "63.1", "63.6", "48.9"]
    kept = paper.table(4, [result("L", (16.7, 67, 74), (1, 3.62), compression="3-bit AWQ", kept="Final-layer MLP")])
    assert [cell.text for cell in kept.rows[0]][:4] == ["L", "3-bit AWQ", "Final-layer MLP", "16.7"]
    assert kept.columns[2].title == "Full-Precision Anywhere?"


def test_table_8_tells_settings_apart() -> None:
    passages = entry("MuSiQue (RAG)", 100, em=0.02, f1=0.1452)
    open_book = {"labels": {"model": "L"}, "benchmarks": {"musique_rag": passages}, "average": None}
    closed = {"labels": {"model": "L"}, "benchmarks": {"musique": entry("MuSiQue", 100, em=0.0, f1=0.0443)}}
    assert text(paper.table(8, [closed, open_book])) == [
        ["Closed-book", "L", "0.0", "4.4"],
        ["RAG", "L", "*2.0", "*14.5"],
    ]
    assert text(paper.table(8, [{"labels": {"model": "L"}, "benchmarks": {}}])) == [["Closed-book", "L", "–", "–"]]
    packed = {**closed, "labels": {"model": "L", "compression": "4-bit AWQ"}}
    told = paper.table(8, [closed, packed])
    assert [column.title for column in told.columns][:3] == ["Setting", "LRM", "Compression"]
    assert [row[2].text for row in told.rows] == ["-", "4-bit AWQ"]
    both = {**closed, "benchmarks": {**closed["benchmarks"], **open_book["benchmarks"]}}
    assert text(paper.table(8, [both])) == text(paper.table(8, [closed, open_book]))


def test_passages_are_no_closed_book() -> None:
    """Tables with MuSiQue among other benchmarks show what a model knows by itself, as the paper's do."""
    passages = entry("MuSiQue (RAG)", 100, em=0.02, f1=0.1452)
    part = {"labels": {"model": "L"}, "benchmarks": {"musique_rag": passages}, "average": None}
    assert text(paper.table(1, [part]))[0][-2:] == ["–", "–"]
    part["benchmarks"] = {"musique_rag": passages, "musique": entry("MuSiQue", 100, em=0.0, f1=0.0443)}
    assert text(paper.table(1, [part]))[0][-2:] == ["0.0", "4.4"]


def test_table_9_has_components_across() -> None:
    rows = [
        result("Llama", (20.0,), compression="4-bit RTN", component="32_up"),
        result("Llama", (43.3,), compression="4-bit RTN", component="1_up"),
        result("Qwen", (16.7,), compression="3-bit RTN", component="32_up"),
    ]
    made = paper.table(9, rows)
    assert [column.title for column in made.columns] == ["Selective Quantization", "32_up", "1_up"]
    assert text(made) == [["4-bit RTN (Llama)", "20.0", "*43.3"], ["3-bit RTN (Qwen)", "16.7", "–"]]


@pytest.mark.parametrize("which", [10, 11])
def test_tables_of_lengths(which: int) -> None:
    made = paper.table(which, LLAMA[:1])
    assert text(made)[0] == ["R1-Distill-Llama", "-", *["*90.0", "20.0", "5.4"] * 4]
    assert made.groups[1] == ("AIME 2024 (n=9 each)", 3)


def test_a_table_that_is_none() -> None:
    with pytest.raises(UserError, match="--table: 5: there are 1, 2, 3, 4, 7, 8, 9, 10, 11"):
        paper.table(5, LLAMA)


AWKWARD = Table(
    [Column("a_b", numeric=False), Column("50%", "g & h")],
    [[Cell("<x> & $y_1$, {z}\\"), Cell("1.0", "[0, 2]", True)], [Cell("[b"), Cell("–")]],
)


def test_latex_is_escaped() -> None:
    made = to_latex(AWKWARD)
    assert r"<x> \& \$y\_1\$, \{z\}\textbackslash{} & \textbf{1.0} {\scriptsize [0, 2]} \\" in made
    assert r"\cmidrule(lr){2-2}" in made and r"a\_b & 50\% \\" in made and "\n{[b} & -- \\\\" in made
    assert made.count("{") == made.count("}")


def test_html_is_escaped() -> None:
    made = to_html(AWKWARD)
    assert "&lt;x&gt; &amp; $y_1$" in made and "<strong>1.0</strong> <small>[0, 2]</small>" in made
    parser, tags = html.parser.HTMLParser(), []
    parser.handle_starttag = lambda tag, _: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(made)
    assert tags.count("tr") == 4 and tags.count("td") == 4


def test_csv_reads_back() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(AWKWARD))))
    assert rows == [
        ["a_b", "g & h: 50%", "g & h: 50% interval"],
        ["<x> & $y_1$, {z}\\", "1.0", "[0, 2]"],
        ["[b", "–", ""],
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_every_row(name: str) -> None:
    made = FORMATS[name](paper.table(1, LLAMA))
    assert len(re.findall("R1-Distill", made)) == 3 and "47.8" in made
    assert FORMATS[name](Table([Column("a")], [])) == ""


def summary() -> dict[str, Any]:
    names = ("original", "awq")
    variants = {
        name: {"modules_quantized": index, "benchmarks": dict(found["benchmarks"]) | {"average": found["average"]}}
        for index, (name, found) in enumerate(zip(names, LLAMA, strict=False))
    }
    moved = {"difference": -0.1, "ci": [-0.2, -0.01], "n": 30}
    return {
        "schema_version": 1,
        "variants": variants,
        "benchmarks": {
            "protocol": {
                "seeds": [0, 1], "prompts": "paper", "limit": 4,
                "max_new_tokens": 32768, "temperature": 0.6, "top_p": 0.95,
            },
            "baseline": "original",
            "differences": {"awq": {"aime_2024": {"accuracy": moved}}},
        },
    }  # fmt: skip


def test_overview_hides_nothing() -> None:
    found = summary()
    variants = {name: row["benchmarks"] for name, row in found["variants"].items()}
    made = overview(variants, found["benchmarks"]["differences"])
    row = next(r for r in made.rows if r[0].text == "awq" and r[1].text == "AIME 2024")
    values = dict(zip([column.title for column in made.columns], row, strict=True))
    assert values["difference"] == Cell("-10.0", "[-20.0, -1.0]", True)
    assert [values[k].text for k in ("n", "outputs", "no answer", "cut", "collapsed", "thinking open")] == [
        "30 × 3", "90", "3", "4", "2", "1"
    ]  # fmt: skip
    brief = overview(variants, brief=True)
    assert "difference" not in [column.title for column in brief.columns]


def test_the_report_has_the_benchmarks() -> None:
    page = render_report(RunFolder("run", summary()))
    assert "Reasoning benchmarks" in page and "at most 32,768 new tokens, seeds 0, 1" in page
    assert "the first 4 questions" in page and "not measured" not in page
    (group, *_) = compute_rows(summary())
    assert {len(row.bars) for row in group.rows} == {2} and all(row.bars[1].hollow for row in group.rows)
    assert compute_rows({"variants": {}}) == []
    assert "Reasoning benchmarks" not in render_report(RunFolder("run", {"schema_version": 1, "variants": {}}))
