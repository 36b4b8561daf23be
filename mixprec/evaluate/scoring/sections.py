"""An output's parts: the thinking, what the model answers behind it, and whether it came to an end."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from mixprec.evaluate.diagnosis import find_loop
from mixprec.evaluate.scoring.text import boxed, mend
from mixprec.traces import thinking

#: Characters looked at: of an answer, of the end of a thinking, and of the end of a long output without a close.
_HEAD, _TAIL = 2_000, 6_000
_CONCLUSION = 1_500
#: An end that occurs so often in the characters before it is a loop; in a short text a sentence may be said again.
_ECHO, _ECHOES, _BEFORE = 60, 4, 30_000
_SHORT_TEXT, _MANY = 3_500, 12
#: Characters from which on a loop without fixed words is looked for too: answers that people write are shorter.
_LONG = 12_000

#: What closes an answer without saying anything: rules, code fences, ends of comments and of elements.
_ORNAMENT = re.compile(r"(?:\s+|`+|\n[ \t]*[-*_=~]{3,}|\*/|-->|</[\w:]{1,20}>|<br ?/?>)\Z")
#: A letter or a number on a line of its own, and a line that begins with an option's letter.
_ALONE = re.compile(r"^[*($\\ ]*(?:[A-Z]|\d{1,3})[*)$ ]*$")
_OPTION = re.compile(r"^\W*\(?[A-Z]\)")
#: A line that presents an answer, and one that announces it for the next line.
_LABEL = (
    r"^[\W_]*(?:my |the )?(?:(?:index|letter|option) of (?:my |the )?)?(?:final |correct |right |short )?"
    r"(?:answer|index|letter|答案)\b[\W_]*"
)
_LABELLED = re.compile(rf"{_LABEL}(?:is\b|[:：]|$)\W*(?P<said>.*)$", re.IGNORECASE)
#: A box on lines of its own, and how a remark on it begins that is no more thinking.
_BOX_ALONE = re.compile(r"^[ \t$*/\\\[(:]*\\?boxed\s*\{[^\n]{1,400}\}[ \t$*\\\]).]*$", re.MULTILINE)
_REMARK = re.compile(r"\s*(?:[#*_>|-]|(?:in |to )?summar|explanation|verification|note\b|this (?:is|means)\b)", re.I)
_CLOSING = tuple(".!?。)]}\"'”’*>|")
#: A direct reply or a labelled answer of so few words needs no full stop, if it doesn't end in mid-phrase.
_SHORT = 15
_LABELLED_WORDS = 8
_MID_PHRASE = re.compile(
    r"(?:\b(?:a|an|the|of|to|about|and|or|is|was|in|on|at|by|from|for|with|that|which|but|because)|[,:;(=+/-]|\\\w*)$"
)
#: How a thinking begins, and what it says on the way: never a text that is an answer.
_THINKING_BEGINS = re.compile(
    r"^\W*(?:okay|ok|alright|all right|hmm+|wait|well,|got it|let me|let's see|(?:so|first),? (?:let|we|i)\b"
    r"|i(?:['’](?:m|ll|ve)| am| will| need| have| should| want| start)\b(?! sorry| not able| unable| afraid)"
    r"|we (?:need|have) to|we(?:'re| are) (?:asked|told|given)|(?:the )?user\b)",
    re.I,
)
#: No direct reply begins so either.
_WORK_BEGINS = re.compile(r"^\W*(?:to|so|let|let's|first|we)\b", re.I)
_THINKS_ALOUD = re.compile(
    r"\b(?:[Ww]ait,|[Hh]mm+\b|[Hh]old on\b|[Ll]et me (?!know\b)|[Ll]et's see\b|[Aa]lternatively,"
    r"|[Mm]aybe I\b|I (?:need|think|should|wonder|guess|recall|remember)\b|I'll\b|I'm (?:not sure|confused|trying)\b)"
)
_ALOUD = 2


class Sections(NamedTuple):
    """``answer``: the text that must hold the answer. ``thinking``: the end of a closed thinking, else empty.

    ``closed``: whether a thinking was closed, or none was ever opened. ``ended``: whether the output came to its own
    end. ``apart``: the answer is a message of its own, which an output that isn't closed lacks.
    """

    answer: str
    thinking: str
    closed: bool
    ended: bool
    apart: bool = False


def split(
    output: str,
    finished: bool | None = None,
    opened: bool = True,
    tags: tuple[thinking.Tag, ...] = thinking.TAGS,
) -> Sections:
    """Part an output at the tag that closes its thinking (``thinking.parts``).

    ``finished``: whether the model stopped by itself (False: at the limit of tokens); None: told from the text.
    ``opened``: whether the prompt left the model inside its thinking.
    """
    found = thinking.parts(output, opened, tags)
    if found.state == "open":
        # Whoever opens a thinking closes it, or was cut; a prompt's opening is passed over now and then.
        ended = found.tag is None and has_ended(output) if finished is None else finished
        short = len(output) <= _HEAD + _CONCLUSION
        text = mend(output if short else output[-_CONCLUSION:])
        return Sections(text, "", False, ended, bool(found.tag and found.tag.apart))
    answer = found.answer
    # A formula may end an answer; in a thinking it may as well be where the limit cut.
    ended = has_ended(answer) or answer.rstrip().endswith("$") if finished is None else finished
    if len(answer) > _HEAD + _TAIL:
        answer = f"{answer[:_HEAD]}\n\n{answer[-_TAIL:]}"
    return Sections(mend(answer), mend(found.thinking[-_CONCLUSION:]), True, ended and not found.reopened)


def has_ended(text: str) -> bool:
    """Whether a text looks as if its author had stopped: it doesn't loop, and its end is one.

    A text that thinks aloud has ended where it presents an answer: in a box or behind a label, on lines of their own.
    Any other has where its last line is whole, or a box is closed in it.
    """
    text = _bare(text)
    if not text or loops(text):
        return False
    if _presents(text):
        ended = True
    elif thinks_aloud(text):
        return False
    else:
        ended = _is_whole(text) or next(boxed(text), None) is not None
    return ended and not (len(text) > _LONG and find_loop(text))


def thinks_aloud(text: str) -> bool:
    """Whether a text is a person's thinking rather than a reply: how it begins, or what it says on the way."""
    if _THINKING_BEGINS.match(text) and len(text.split(None, _SHORT)) > _SHORT:
        return True
    return len(list(itertools.islice(_THINKS_ALOUD.finditer(text), _ALOUD))) == _ALOUD


def _bare(text: str) -> str:
    """A text without ornaments at its end."""
    while ornament := _ORNAMENT.search(text, max(0, len(text) - 80)):
        text = text[: ornament.start()]
    return text


def _presents(text: str) -> bool:
    """Whether the end presents an answer: a box, perhaps with a remark on it behind, or a label in the last lines."""
    end = text[-_CONCLUSION:]
    boxes = [box.end() for box in _BOX_ALONE.finditer(end)]
    if boxes:
        behind = _bare(end[boxes[-1] :].lstrip("\n\\])$ "))
        if not behind or (_REMARK.match(behind) and not _THINKS_ALOUD.search(behind)):
            return True
    lines = [line for line in end.split("\n") if line.strip()][-2:]
    label = _LABELLED.match(lines[-1])
    said = label["said"] if label else lines[-1]
    above = None if label or len(lines) < 2 else _LABELLED.match(lines[0])
    if not said.strip() or not (label or (above and not above["said"])):
        return False
    return _closes(lines[-1]) or (_is_short(said, _LABELLED_WORDS) and not _left_open(lines[-1]))


def _is_whole(text: str) -> bool:
    """Whether the last line of a text is complete, or a short direct reply."""
    last = text.rpartition("\n")[2]
    if _closes(last) or _ALONE.match(last):
        return True
    if _left_open(last):
        return False
    if _OPTION.match(last):
        return _is_short(last, _SHORT)
    return _is_short(text, _SHORT) and not _THINKING_BEGINS.match(text) and not _WORK_BEGINS.match(text)


def _closes(line: str) -> bool:
    """Whether a line ends as sentences, formulas and mark-up do, with nothing left open."""
    return line.rstrip()[-1:] in _CLOSING and not _left_open(line)


def _is_short(text: str, words: int) -> bool:
    """Whether a text is so short that it needs no full stop, and doesn't break off."""
    return len(text.split(None, words)) <= words and not _MID_PHRASE.search(text)


def _left_open(line: str) -> bool:
    """Whether bold type or a bracket begins in a line and doesn't end there."""
    return line.count("**") % 2 == 1 or max(map(line.rfind, "([{")) > max(map(line.rfind, ")]}"))


def loops(text: str) -> bool:
    """Whether the end of a text was said again and again just before."""
    most = _ECHOES if len(text) > _SHORT_TEXT else _MANY
    return len(text) > _ECHO * most and text.count(text[-_ECHO:], -_BEFORE) >= most
