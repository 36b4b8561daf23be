"""Text from elsewhere stays text: in the terminal, in Markdown, in spreadsheets, in pages."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table as RichTable

from mixprec.core.escaping import csv_cell, markdown, markdown_block, markdown_code, one_line, visible
from mixprec.core.progress import PlainConsole, bar
from mixprec.report.folder import RunFolder
from mixprec.report.html import render_report
from mixprec.report.render import to_csv, to_html, to_latex
from mixprec.report.tables import Cell, Column, Table, to_markdown
from mixprec.report.terminal import rich_table

MARKUP = ["[/b]", "[red]x[/red]", "[link=http://x]y[/link]", ":smile:", "[@click=app.bell]z[/]", "\\[b]"]
CONTROLS = ["\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202egnp.exe", "\u2066x\u2069", "\x00", "\ud800"]


@pytest.mark.parametrize("text", CONTROLS)
def test_controls_are_shown_not_obeyed(text: str) -> None:
    shown = visible(text)
    assert "\\" in shown
    assert shown.isprintable()
    shown.encode()


def test_other_text_stays() -> None:
    text = "naïve 北京 \U0001f600 a\tb\nc −0.12 [1, 2]"
    assert visible(text) == text
    assert one_line(text) == text.replace("\t", " ").replace("\n", " ")


def printed(*things: object, **options: object) -> str:
    stream = io.StringIO()
    PlainConsole(file=stream, width=200).print(*things, **options)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.mark.parametrize("text", MARKUP)
def test_the_console_knows_no_markup(text: str) -> None:
    assert printed(text) == f"{text}\n"
    table = RichTable(text, title=text)
    table.add_row(text)
    assert printed(table).count(text) == 3
    assert text in printed(rich_table(Table([Column(text)], [[Cell(text, text)]]), text))


@pytest.mark.parametrize("text", CONTROLS)
def test_the_console_obeys_no_controls(text: str) -> None:
    table = RichTable(text, title=text)
    table.add_row(text)
    own = rich_table(Table([Column(text, group=text)], [[Cell(text, text)]]), text)
    for thing in (text, table, own):
        assert not set(printed(thing)) & {"\x1b", "\x9b", "\x07", "\x00", "\r", "\u202e", "\u2066", "\ud800"}


def test_a_progress_bar_shows_a_path_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("reading runs/[/b]", 1, "[/x]") as advance:
        advance(1)


@pytest.mark.parametrize(
    "text",
    ["=1+1", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\n=1", "＝1", "-x", "+", "-2+3+cmd|x"],
)
def test_a_cell_is_no_formula(text: str) -> None:
    row = next(csv.reader(io.StringIO(to_csv(Table([Column(text)], [[Cell(text, text)]])))))
    assert row[0] == f"'{text}"
    assert csv_cell(text) == f"'{text}"


def test_a_carriage_return_ends_no_row() -> None:
    text = to_csv(Table([Column("a")], [[Cell("x\r=1+1")]]))
    assert list(csv.reader(io.StringIO(text))) == [["a"], ["x\\r=1+1"]]


@pytest.mark.parametrize("text", ["-0.12", "+1.3", "-1,234", "-12%", "-1.5e-05", "0.1", "[-0.1, 0.2]", "a=b", "–", ""])
def test_numbers_stay_numbers(text: str) -> None:
    assert csv_cell(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)\\>"),
        ("a|b", "a\\|b"),
        ("[x](javascript:alert(1))", "[x\\](javascript:alert(1))"),
        ("![x][y]", "![x\\][y]"),
        ("```\nrm", "\\`\\`\\` rm"),
        ("# title", "\\# title"),
        ("- a", "\\- a"),
        ("1. a", "1\\. a"),
        ("&lt;b>", "\\&lt;b\\>"),
        ("_x_ *y* ~~z~~", "\\_x\\_ \\*y\\* \\~\\~z\\~\\~"),
        ("a\n---\nb: c", "a --- b: c"),
        ("smollm2_135m w3g64 -0.12 1.72 [1.63, 1.81]", "smollm2_135m w3g64 -0.12 1.72 [1.63, 1.81]"),
    ],
)
def test_markdown_is_read_as_it_stands(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


@given(st.text())
def test_markdown_pieces_never_break_out(text: str) -> None:
    assert "\n" not in markdown(text)
    assert "<" not in markdown(text)
    code = markdown_code(text)
    assert "\n" not in code
    block = markdown_block(text).rstrip("\n").split("\n")
    assert block[0] == block[-1]
    assert not any(line.strip().startswith(block[0]) for line in block[1:-1])


def test_tables_hold_what_is_hostile() -> None:
    text = "<script>|`\x1b[0m\n# x"
    table = Table([Column(text, group=text), Column("n")], [[Cell(text, text), Cell("1")]])
    assert "<script>" not in to_markdown(table) + to_html(table)
    assert to_markdown(table).count("\n") == 3
    assert "\x1b" not in to_markdown(table) + to_latex(table)


def test_pages_show_controls_and_run_nothing() -> None:
    title = "\x1b</title></script><script>alert(1)</script>\u202e"
    summary = {"schema_version": 1, "title": title, "recipe": title, "model": title}
    page = render_report(RunFolder("run", summary, recipe=title))
    assert "<script>alert" not in page
    assert not set(page) & {"\x1b", "\u202e"}
    assert "\\x1b&lt;/title&gt;" in page
