"""What a sentence claims: without what it denies, compares with, or only adds."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

from mixprec.evaluate.scoring.names import names
from mixprec.evaluate.scoring.stems import anchors, content

#: "not X", "wasn't X but", up to where the denial ends.
_DENIED = re.compile(
    r"(?:\b(?:not|never)\b|n['’]t\b)(?!\s+only\b)[^,;:()。，]{0,160}?(?=\s+but\b|[,;:()。，]|\.?$)|不是[^，。]*[，。]\s*而是"
)
#: "X is not his spouse": of a denied clause the subject goes too.
_UNDONE = re.compile(
    r"(?<![^,;:()])[^,;:()\0]{0,160}\b(?:is|was|are|were|did|does|do|has|had|have|could|would|will|be)\s*\0(?!\s*but\b)"
)
_OTHERS = re.compile(
    r"^\W*(?:some|many|most|people|others|it is often)\b[^,]{0,120}"
    r"\b(?:believed?|say|said|think|thought|claim(?:ed)?|assumed?)\b[^,]{0,120},\s+but\s+",
    re.I,
)
#: "the team that would not play is X": such a clause only says which thing is meant.
_WHICH_NOT = re.compile(
    r"(?<=\w)\s(?:that|who|which)\s+(?:\w+\s+){0,2}?(?:not|\w+n['’]t)\s[^,;:()]{0,80}?(?=\s(?:is|was|are|were)\s)"
)
#: "It used to belong to X, but today …": what counts stands behind.
_FORMER = re.compile(
    r"^[^,;]{0,160}\b(?:used to|formerly|previously|once)\b[^,;]{0,120},\s+but\s+"
    r"(?=(?:it\s+)?(?:is\s+)?(?:now|today|currently)\b)",
    re.I,
)
_COMPARED = re.compile(
    r",?\s*\b(?:rather than|instead of|unlike|as opposed to|other than|in contrast to|contrary to|different from|"
    r"(?:long|shortly|\w+ years?) (?:before|after)|(?:less|more) than(?!\s+(?:\w+\s+)?\d))\b[^,;]{0,120}",
    re.I,
)
#: A clause behind the claim, and one in front of it.
_BEHIND = re.compile(
    r"(?<=\w)(?:,\s+(?:although|though|while|whereas|after|before|when|until|because|since|as|but|so|even though|"
    r"replacing|following)|\s+(?:because|although|though|while|whereas|after|before|since|until|when))\b.*$",
    re.I,
)
_FRONT = re.compile(
    r"^(?:when|after|before|while|although|though|because|since|as|like|besides|along with)\b[^,]{1,120},\s*", re.I
)
_INSERTED = re.compile(r",\s+(?:an?|the|who|whose|which|where)\b([^,]{1,80}),(?=\s+[a-z])")
_APPENDED = re.compile(
    r",\s+(?:an?|the|who|whose|which|where|"
    r"(?:for|in|of|with|under|by|at|from|on|to|during|through) wh(?:ich|om|ose)|in|at|near|between|located|based|"
    r"south|north|east|west|also|formerly|later|now|once)\b([^,]*)$"
)
#: ", a Nashville label" says of a name what it is.
_SORT = re.compile(r",\s+an?\s+(?:[\w-]+\s+){0,3}[a-z]+\W*$")


def claimed(sentence: str) -> str:
    """A sentence without what it denies and what it compares with."""
    sentence = _WHICH_NOT.sub("", _FORMER.sub("", _OTHERS.sub("", sentence)))
    sentence = _UNDONE.sub("", _DENIED.sub("\0", sentence)).replace("\0", " ")
    return _COMPARED.sub(" ", sentence).replace("  ", " ").strip(" ,;")


def main(sentence: str, asked: AbstractSet[str]) -> str:
    """A claim without the clauses in front of it and behind it that only add something."""
    bare = _BEHIND.sub("", sentence)
    bare = bare if len(bare.split()) > 2 or names(bare) else sentence
    known = anchors(asked)
    bare = _SORT.sub("", bare)
    bare = _APPENDED.sub(lambda match: match[0] if content(match[1]) & known else "", bare)
    bare = _INSERTED.sub(lambda match: match[0] if content(match[1]) & known else "", bare)
    return _FRONT.sub("", bare) or bare


def main_end(sentence: str) -> int:
    """Where a clause begins that stands behind the claim: ", although parts are from the 1590s"."""
    behind = _BEHIND.search(sentence)
    return behind.start() if behind else len(sentence)
