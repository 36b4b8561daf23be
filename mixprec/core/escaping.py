"""Text from elsewhere (paths, names, labels, outputs) as the place that it goes to needs it.

Nothing in such text is markup, a formula, a link or a command for the terminal. jinja and markupsafe escape HTML.
"""

from __future__ import annotations

import re

#: Control characters but tab and newline, marks that change the direction of the text behind them (CVE-2021-42574),
#: and lone surrogates, which no file takes.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*<>|~$]|\](?=[(\[:])|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")
#: Where a line begins with one of these, Markdown sees a heading, a list or a rule.
_BLOCK = re.compile(r"^(?:#|[-+=](?=[\s=-]|$)|\d+(?=[.)](?:\s|$)))")
#: What makes a spreadsheet read a cell as a formula (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[-+](?:\d[\d,]*|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?%?")


def visible(text: str) -> str:
    """Control characters, marks of direction and lone surrogates as ``\\x1b`` or ``\\u202e``; tabs and lines stay."""
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str) -> str:
    """``visible`` text with each run of blanks and line ends as one blank."""
    return visible(" ".join(text.split()))


def markdown_cell(text: str) -> str:
    """Text in a table's cell of Markdown (CommonMark and GitHub's tables), on one line, read as it stands."""
    return _MARKDOWN.sub(lambda found: "&lt;" if found[0] == "<" else f"\\{found[0]}", one_line(text))


def markdown(text: str) -> str:
    """Text in a line of Markdown, or at its beginning, where a cell's text needs less."""
    plain = markdown_cell(text)
    return _BLOCK.sub(lambda found: found[0] + "\\" if found[0].isdigit() else f"\\{found[0]}", plain)


def markdown_code(text: str) -> str:
    """Text as code within a line of Markdown, on one line; a bar would end a table's cell and stands escaped."""
    plain = one_line(text)
    fence = "`" * (_longest_ticks(plain) + 1)
    pad = " " if plain[:1] in ("`", "") or plain[-1:] == "`" else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def markdown_block(text: str, language: str = "") -> str:
    """Text as a fenced block of Markdown; no fence within it ends the block."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}\n"


def csv_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe in front of what begins like one and is no number."""
    plain = visible(text)
    risky = plain.startswith(_FORMULA) and not _NUMBER.fullmatch(plain)
    return f"'{plain}" if risky else plain


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
