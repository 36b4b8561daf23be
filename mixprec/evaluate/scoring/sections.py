"""An output's parts: the thinking, what the model answers behind it, and whether it came to an end."""

from __future__ import annotations

import re
from typing import NamedTuple

from mixprec.evaluate.diagnosis import find_loop
from mixprec.evaluate.scoring.text import mend

OPEN, CLOSE = "<think>", "</think>"

#: Characters looked at: of an answer, of the end of a thinking, and of the end of a long output without ``</think>``.
_HEAD, _TAIL = 2_000, 6_000
_CONCLUSION = 1_500
#: An end that occurs so often in the characters before it is a loop.
_ECHO, _ECHOES, _BEFORE = 60, 4, 30_000
#: Characters from which on a loop without fixed words is looked for too: answers that people write are shorter.
_LONG = 12_000

_LAST_LINE_ANSWERS = re.compile(r"answer|boxed|^\W*\(?[A-Z]\)", re.IGNORECASE)
#: A letter or a number on a line of its own.
_ALONE = re.compile(r"^[*($\\ ]*(?:[A-Z]|\d{1,3})[*)$ ]*$")
#: A direct reply of so few words needs no full stop, if it doesn't begin as a thinking does or end in mid-phrase.
_SHORT = 15
_THINKS = re.compile(
    r"^\W*(?:hmm|okay|ok|alright|so|let|first|wait|i|to|well)\b|\b(?:a|an|the|of|to|about|and|is|in)$", re.I
)


class Sections(NamedTuple):
    """``answer``: the text that must hold the answer. ``thinking``: the end of a closed thinking, else empty.

    ``closed``: whether ``</think>`` was there, or no thinking was ever opened. ``ended``: whether the output came to
    its own end.
    """

    answer: str
    thinking: str
    closed: bool
    ended: bool


def split(output: str, finished: bool | None = None, opened: bool = True) -> Sections:
    """Cut an output at its last ``</think>``.

    ``finished``: whether the model stopped by itself (False: at the limit of tokens); None: told from the text.
    ``opened``: whether the prompt left the model inside its thinking.
    """
    thinking, close, answer = output.rpartition(CLOSE)
    if not close and (opened or OPEN in output):
        ended = has_ended(output) if finished is None else finished
        short = len(output) <= _HEAD + _CONCLUSION
        return Sections(mend(output if short else output[-_CONCLUSION:]), "", False, ended)
    # A formula may end an answer; in a thinking it may as well be where the limit cut.
    ended = has_ended(answer) or answer.rstrip().endswith("$") if finished is None else finished
    if len(answer) > _HEAD + _TAIL:
        answer = f"{answer[:_HEAD]}\n\n{answer[-_TAIL:]}"
    return Sections(mend(answer), mend(thinking[-_CONCLUSION:]), True, ended)


def has_ended(text: str) -> bool:
    """Whether a text looks as if its author had stopped: no loop, and a last line that is whole."""
    text = text.rstrip("` \n\t\r")
    if not text or loops(text):
        return False
    return _is_whole(text) and not (len(text) > _LONG and find_loop(text))


def _is_whole(text: str) -> bool:
    """Whether the last line of a text is complete, or a short direct reply."""
    last = text.rpartition("\n")[2]
    if text[-1] in ".!?。)]}\"'”’*>|" or _ALONE.match(last) or _LAST_LINE_ANSWERS.search(last):
        return True
    before = text[: len(text) - len(last)].rstrip().rpartition("\n")[2]
    reply = len(text.split(None, _SHORT)) <= _SHORT and not _THINKS.search(text)
    return "answer" in before.lower() or reply


def loops(text: str) -> bool:
    """Whether the end of a text was said several times just before."""
    return len(text) > _ECHO * _ECHOES and text.count(text[-_ECHO:], -_BEFORE) >= _ECHOES
