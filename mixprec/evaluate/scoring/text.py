"""Text as models write it, made plain: special tokens, Markdown, LaTeX and what JSON makes of its backslashes."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: End-of-text tokens that some engines leave in their output.
_SPECIAL = re.compile(r"<[|｜][^<>\n]{1,40}[|｜]>|</?s>|</?br ?/?>|</(?:final_)?answer>")
_TAGGED = re.compile(r"<(?:final_)?answer>", re.I)
#: Blanks in a row that rules have to look at; many look from each on.
_MOST_BLANKS = 40
_BLANKS = re.compile(rf"\s{{{_MOST_BLANKS},}}")
#: Backslash letters that someone read as escapes: ``\f`` of ``\frac``, ``\t`` of ``\text``, ``\b`` of ``\boxed``.
_ESCAPES = re.compile("\x0c(?=rac|box)|\t(?=ext|frac|imes)|\x08(?=oxed|inom|f\\{)|\x0b(?=ec)")
_ESCAPED = {"\x0c": "\\f", "\t": "\\t", "\x08": "\\b", "\x0b": "\\v"}
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_WRAPPED = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|textit|mathit|mathsf|operatorname|mbox|fbox|emph|bf|rm)\s*\{([^{}]*)\}"
)
_NOISE = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|big|Big)(?![a-zA-Z])|\\[,;:!()\[\] ]|\\\\|[$~]")
_MARKS = re.compile(r"\*+|(?<!\w)_+|_+(?!\w)|`+|^[ \t]*(?:#+|>+)[ \t]*", re.MULTILINE)
#: Not "**A**ir", whose letters explain an abbreviation.
_BOLD = re.compile(
    r"(?<![a-z])\*\*(?! )([^*\n]{1,200})(?<! )\*\*(?!\s*[:：]|[a-z])|__(?! )([^_\n]{1,200})(?<! )__(?!\s*[:：])"
)
#: "While there is no information on the others, …", "I'm not sure, but …": what counts stands behind.
_CONCEDES = re.compile(
    r"^\W*(?:(?:while|although|though|even though|despite)\b[^,.]{1,200},\s*"
    r"|i(?:['’]m| am| do|['’]ve| have| can)?\s?(?:not|n['’]t)\b[^,.]{1,100},?\s+but\s+)"
    r"(?:i (?:believe|think|guess)(?: that)?\s+)?",
    re.I,
)
#: Boxes looked at from the end, and characters in one.
_MOST_BOXES = 20
_LONGEST_BOX = 400
_BOX = re.compile(r"boxed\s*(?=\{)|(?<=\\)boxed\s+(?=\w)")
#: A box with nothing in it yet: "?", "…", "\\ldots".
_BLANK_BOX = re.compile(r"\\boxed\s*\{(?:[\s?._…{}~$]|\\(?:text|[lc]?dots|_|,|;|\s))*\}")
_BARE_BOX = re.compile(r"\w+")
_SENTENCE = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|Sr|No|vs)\.)(?<!\b(?:Mrs|Inc|Ltd)\.)(?<!\b(?:Bros|Corp|Prof)\.)[\"'”’*)\]]*\s+(?=[\W_]{0,40}[A-Z0-9])|\n+"
)


def mend(text: str) -> str:
    """Without special tokens, boxes that hold nothing and blanks without end, and with the backslashes of LaTeX that
    were read as control characters."""
    text = _BLANKS.sub(lambda match: match[0][:_MOST_BLANKS], text)
    if "<" in text:
        text = _TAGGED.sub("\nAnswer: ", _SPECIAL.sub(" ", text))
    if any(escape in text for escape in _ESCAPED):
        text = _ESCAPES.sub(lambda match: _ESCAPED[match[0]], text)
    return _BLANK_BOX.sub("", text)


def plain(text: str) -> str:
    """One line without Markdown and LaTeX mark-up: ``**\\text{Sayyid Ali}**`` is ``Sayyid Ali``, a fraction ``a/b``."""
    if "\\" in text or "$" in text or "~" in text:
        for _ in range(3):  # nested at most so deep in an answer
            text, wrapped = _WRAPPED.subn(r"\1", text)
            text, divided = _FRACTION.subn(_fraction, text)
            if not wrapped and not divided:
                break
        text = _NOISE.sub(" ", text)
    if any(mark in text for mark in "*_`#>"):
        text = _MARKS.sub("", text)
    return " ".join(text.split())


def _fraction(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}/{match[3] or match[4]}"


def without_concession(sentence: str) -> str:
    """A sentence without the clause at its beginning that only concedes something."""
    return _CONCEDES.sub("", sentence)


def bold(text: str) -> list[str]:
    """What stands in bold, without headings (a colon ends them, or follows)."""
    found = [(one or other).strip() for one, other in _BOLD.findall(text)] if "**" in text or "__" in text else []
    return [each for each in found if each and not each.endswith(":")]


def sentences(text: str) -> list[str]:
    """Sentences and lines, without blank ones."""
    return [each.strip() for each in _SENTENCE.split(text) if each and not each.isspace()]


def boxed(text: str) -> Iterator[str]:
    """Contents of ``\\boxed{…}``, the last first, braces matched; empty and unclosed ones are passed over."""
    end = len(text)
    for _ in range(_MOST_BOXES):
        end = text.rfind("boxed", 0, end)
        if end < 0:
            return
        command = _BOX.match(text, end)
        content = _content(text, command.end()) if command else None
        if content and content.strip():
            yield content.strip()


def _content(text: str, start: int) -> str | None:
    """The braces' content that begins at ``start``, or the bare word there; None where they don't close."""
    if not text.startswith("{", start):
        bare = _BARE_BOX.match(text, start)
        return bare[0] if bare else None
    depth = 0
    for position in range(start, min(len(text), start + _LONGEST_BOX)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + 1 : position]
    return None
