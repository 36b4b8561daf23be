"""Tables of this package as LaTeX, HTML and CSV; Markdown is in ``tables``."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from markupsafe import escape

from mixprec.core.escaping import csv_cell, visible
from mixprec.report.tables import Cell, Table, to_markdown

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "×": r"$\times$", "±": r"$\pm$", "\n": " ",
    }
)  # fmt: skip


def to_latex(table: Table) -> str:
    """A booktabs table (``\\usepackage{booktabs}``), intervals small behind their value; empty for no rows."""
    if not table.rows:
        return ""
    shape = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
    if len(table.groups) > 1:
        spans = [rf"\multicolumn{{{count}}}{{c}}{{{_tex(name)}}}" for name, count in table.groups]
        lines.append(" & ".join(spans) + r" \\")
        lines += [_rules(table)]
    lines.append(" & ".join(_tex(column.title) for column in table.columns) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(_tex_cell(cell) for cell in row) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _rules(table: Table) -> str:
    """A line under each group that has a name."""
    start, rules = 1, []
    for name, count in table.groups:
        if name:
            rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    return " ".join(rules)


def _tex(text: str) -> str:
    return visible(text).translate(_LATEX)


def _tex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_tex(cell.text)}}}" if cell.strong else _tex(cell.text)
    # A bracket at the beginning of a row would be read as an option of the line break before it.
    text = f"{{{text}}}" if text.startswith("[") else text
    return text + (rf" {{\scriptsize {_tex(cell.note)}}}" if cell.note else "")


def to_html(table: Table) -> str:
    """A bare HTML table; empty for no rows."""
    if not table.rows:
        return ""
    lines = ["<table>", "<thead>"]
    if len(table.groups) > 1:
        spans = (f'<th colspan="{count}">{escape(name)}</th>' for name, count in table.groups)
        lines.append(f"<tr>{''.join(spans)}</tr>")
    lines.append(f"<tr>{''.join(f'<th>{escape(column.title)}</th>' for column in table.columns)}</tr>")
    lines += ["</thead>", "<tbody>"]
    lines += [f"<tr>{''.join(f'<td>{_html_cell(cell)}</td>' for cell in row)}</tr>" for row in table.rows]
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


def _html_cell(cell: Cell) -> str:
    text = f"<strong>{escape(cell.text)}</strong>" if cell.strong else str(escape(cell.text))
    return text + (f" <small>{escape(cell.note)}</small>" if cell.note else "")


def to_csv(table: Table) -> str:
    """Comma-separated values, notes in a column of their own behind those that have any; empty for no rows.

    Text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    if not table.rows:
        return ""
    noted = [any(row[i].note for row in table.rows) for i in range(len(table.columns))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header: list[str] = []
    for column, has_note in zip(table.columns, noted, strict=True):
        title = f"{column.group}: {column.title}" if column.group else column.title
        header += [title, f"{title} interval"] if has_note else [title]
    writer.writerow(map(csv_cell, header))
    for row in table.rows:
        cells: list[str] = []
        for cell, has_note in zip(row, noted, strict=True):
            cells += [cell.text, cell.note] if has_note else [cell.text]
        writer.writerow(map(csv_cell, cells))
    return text.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": to_markdown, "latex": to_latex, "html": to_html, "csv": to_csv
}  # fmt: skip
