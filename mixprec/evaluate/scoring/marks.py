"""Lists and tables in which every candidate has a verdict: ``| (A) | ❌ |``, ``- (B) 7am to 11am: **Yes**, free``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

#: What a label stands for, None where it is no candidate.
Read = Callable[[str], str | None]

_GOOD_MARKS, _BAD_MARKS = "✅✔☑✓🟢👍", "❌✗✘✖☒❎🚫⛔🔴👎"
_MARK = re.compile(f"[{_GOOD_MARKS}]|(?P<bad>[{_BAD_MARKS}])")
_VERDICT = re.compile(
    r"(?:(?:it )?(?:is |was )?(?:the )?(?:only )?(?:definitely )?)?(?:"
    r"(?P<bad>no(?=$|\W)|false|impossible|invalid|incorrect|wrong|busy|occupied|unavailable|infeasible|excluded|eliminated|"
    r"taken|closed|mismatch|rejected|ruled out|conflicts?|overlaps?|(?:not|isn't|wasn't|cannot|can't) \w+|"
    r"(?:does|do|did)(?:n't| not) (?:match|fit|work))"
    r"|yes|true|possible|valid|match(?:es)?|fits?|free|available|feasible|correct|right|works?|viable|suitable|plausible|"
    r"unoccupied|accepted|remains?|(?<=is )left)\b",
    re.I,
)
#: Columns in whose cells "yes" speaks against a row.
_TURNED = re.compile(
    r"\b(?:busy|occupied|conflicts?|seen|taken|overlaps?|ruled out|excluded|closed|unavailable|booked|eliminated)\b",
    re.I,
)
_CHECKBOX = re.compile(r"^\W*?\[(?P<good>[xX])?\s*\]")
_SEPARATOR = re.compile(r"[:：→⇒⟹➡➜👉]|[-=]>|\s[–—-]\s")
_CLOSING = re.compile(r"\(([^()]{1,40})\)\W*$")
_BULLET = re.compile(r"^(?:\d{1,2}[.)]|[-+•])\s+(?!\[)")
_BOLD_END = re.compile(r"\*\*([^*]{1,40})\*\*\W*$")
_LETTER = re.compile(r"(\([A-Z]\)|[A-Z][).])\s+(.*)")
_RULE = re.compile(r"[\s|:+-]+")
_LONGEST, _MOST = 300, 200


class Marked(NamedTuple):
    """Candidates with their verdicts (the last of each), and the text in front of and behind them."""

    verdicts: dict[str, bool]
    before: str
    behind: str

    @property
    def good(self) -> list[str]:
        """The candidates that the marks speak for."""
        return [each for each, good in self.verdicts.items() if good]


def marked(text: str, read: Read) -> Marked | None:
    """The verdicts of a list or table; None where fewer than two candidates have one."""
    lines = text.split("\n")[-_MOST:]
    verdicts: dict[str, bool] = {}
    numbers = []
    for number, found in _found(lines, read):
        verdicts |= found
        numbers.append(number)
    if len(verdicts) < 2:
        return None
    return Marked(verdicts, "\n".join(lines[: numbers[0]]), "\n".join(lines[numbers[-1] + 1 :]))


def _found(lines: list[str], read: Read) -> Iterator[tuple[int, dict[str, bool]]]:
    header: list[str] = []
    for number, line in enumerate(lines):
        line = line.strip()[:_LONGEST]
        if line.count("|") < 2 - (not line.startswith("|")):
            header = []
            found = dict(_of_line(line, read))
        elif _RULE.fullmatch(line):
            continue
        else:
            cells = [_bare(each) for each in line.strip("|").split("|")]
            found = dict(_of_cells(cells, header, read))
            header = header or cells
        if found:
            yield number, found


def _of_cells(cells: list[str], header: list[str], read: Read) -> Iterator[tuple[str, bool]]:
    """Verdicts of a table's row: cells with both, cells below the candidates, or the row's last verdict."""
    both = [found for each in cells for found in _of_line(each, read)]
    if len(both) > 1:
        yield from both
        return
    said = {column: good for column, each in enumerate(cells) if (good := _whole(each)) is not None}
    above = {column: name for column, each in enumerate(header) if column in said and (name := read(each))}
    if len(above) > 1:
        yield from ((name, said[column]) for column, name in above.items())
        return
    names = [(column, name) for column, each in enumerate(cells) if (name := read(each))]
    if not names:
        return
    place, name = names[0]
    said = {column: good for column, good in said.items() if column != place}
    if not said:
        said = {
            column: good for column, each in enumerate(cells) if column != place and (good := _leads(each)) is not None
        }
    if said:
        column = max(said)
        turned = column < len(header) and bool(_TURNED.search(header[column]))
        yield name, said[column] != turned


def _of_line(line: str, read: Read) -> Iterator[tuple[str, bool]]:
    """The candidate of a line with its verdict: a mark anywhere, or a word behind a colon or dash, or in brackets."""
    bare = _bare(line)
    if box := _CHECKBOX.match(line):
        good, label = bool(box["good"]), line[box.end() :]
    elif marks := {mark["bad"] is None for mark in _MARK.finditer(line)}:
        if len(marks) > 1:
            return
        good, label = marks.pop(), _MARK.sub(" ", bare)
    else:
        parts = ((bare[: each.start()], bare[each.end() :]) for each in _SEPARATOR.finditer(bare))
        told = next(((label, said) for label, rest in parts if (said := _leads(rest)) is not None), None)
        for ending, within in ((_CLOSING, bare), (_BOLD_END, line)):
            closing = ending.search(within)
            if not told and closing and (said := _leads(_bare(closing[1]))) is not None:
                told = _bare(within[: closing.start()]), said
        behind = _LETTER.match(bare)
        if not told and behind and (said := _whole(behind[2])) is not None:
            told = behind[1], said
        if not told:
            return
        label, good = told
    if name := read(label.strip()):
        yield name, good


def _bare(text: str) -> str:
    return _BULLET.sub("", text.replace("*", "").replace("`", "").replace("\ufe0f", "").strip())


def _whole(cell: str) -> bool | None:
    """The verdict that a cell is, None where it is more or something else."""
    if marks := {mark["bad"] is None for mark in _MARK.finditer(cell)}:
        return marks.pop() if len(marks) == 1 and len(cell) <= 40 else None
    cell = cell.lstrip(" 👉➜")
    found = _VERDICT.match(cell)
    return found["bad"] is None if found and not cell[found.end() :].strip(" .!") else None


def _leads(text: str) -> bool | None:
    """The verdict that a text begins with."""
    text = text.lstrip(" .:-–—(")
    if mark := _MARK.match(text):
        return mark["bad"] is None
    found = _VERDICT.match(text)
    return found["bad"] is None if found and not text[found.end() :].startswith(("-", "'")) else None
