"""What of a judge's answer stands in the text that it was asked about. Nothing else of it is used.

An answer is a copy of the text with sections. Its stretches, those outside of sections too, are placed in reading order
(``alignment.align``). What the judge paraphrased is found there no more: it is mended where the gap between its
neighbours still holds most of its words. The rest is counted, and says whether the judge has to be asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import Match, SequenceMatcher
from itertools import accumulate, groupby
from typing import NamedTuple

from mixprec.evaluate.engines.base import Finish
from mixprec.traces import thinking
from mixprec.traces.alignment import Place, align, skeleton
from mixprec.traces.annotate import Section, normalise_label, read_sections
from mixprec.traces.judge.pieces import Found, Piece
from mixprec.traces.spans import THRESHOLD

#: Shares of an answer's sections, in characters, up to which it is used as it is: sections that aren't found, with
#: other labels, inside of one another.
_MOST = 0.1
#: Share of the text that an answer may leave out; one that broke off at its limit, what comes last.
_MOST_LOST, _MOST_BROKEN = 0.2, 0.02
#: Less of the text than this, and no section: the answer is about something else, mostly a refusal.
_LEAST = 0.3
#: A paraphrased section is placed where the two share so much of each, in runs of at least so many characters.
_SHARED, _RUN = 0.6, 3
#: What is compared with a gap is at most so many times as long.
_LONGEST = 2
_CLOSING = ".,;:!?…)。，；：！？）"


class Reading(NamedTuple):
    """What an answer gives: sections in characters of the whole text, in order.

    ``fault``: why it should be asked for again, None where it can be used; a key of ``prompts.REMINDERS``. ``skipped``:
    sections without a place, by reason. ``mended``: paraphrased sections that were placed all the same.
    """

    found: list[Found]
    fault: str | None
    skipped: Counter[str]
    mended: int

    def within(self, piece: Piece) -> Reading:
        """What lies in a part of the piece, without the counts, which are of the whole answer."""
        inside = [
            each._replace(start=max(each.start, piece.start), end=min(each.end, piece.end))
            for each in self.found
            if each.start < piece.end and piece.start < each.end
        ]
        return self._replace(found=inside, skipped=Counter(), mended=0)

    @property
    def size(self) -> int:
        """Characters in sections."""
        return sum(each.end - each.start for each in self.found)


def read(answer: str, finish: Finish, text: str, piece: Piece) -> Reading:
    """Read an answer about ``piece`` of ``text``. ``finish``: how the answer ended."""
    asked = text[piece.start : piece.end]
    sections = list(_stretches(_said(answer)))
    places = align(asked, [each.text for each in sections], THRESHOLD)
    mended = _mend(asked, sections, places)
    kinds = [None if each.label is None else normalise_label(each.label) for each in sections]
    found = [
        Found(kind, piece.start + place.start, piece.start + place.end)
        for kind, place in zip(kinds, places, strict=True)
        if kind is not None and not place.reason
    ]
    skipped = Counter(
        "unknown_label" if kind is None else place.reason
        for kind, section, place in zip(kinds, sections, places, strict=True)
        if section.label is not None and (kind is None or place.reason)
    )
    skipped["nested"] = sum(each.nested for each in sections)
    return Reading(found, _fault(finish, asked, sections, kinds, places), +skipped, mended)


def _said(answer: str) -> str:
    """An answer without the judge's own thinking; empty where the thinking never ended."""
    thought = thinking.parts(answer)
    return "" if thought.state == "open" else thought.answer


def _stretches(said: str) -> Iterator[Section]:
    """The sections that have text, and the lines outside of them: some are copies, some are the judge's own words."""
    for section in read_sections(said):
        if section.label is not None and section.text:
            yield section
        elif section.label is None:
            yield from (section._replace(text=line) for line in section.text.splitlines() if line.strip())


def _fault(
    finish: Finish, asked: str, sections: Sequence[Section], kinds: Sequence[str | None], places: Sequence[Place]
) -> str | None:
    """Why an answer can't be used as it is; the first reason that holds, as the others may follow from it."""
    labelled = [each.label is not None for each in sections]
    whole = _weight(sections, labelled)
    copied = sum(len(skeleton(asked[place.start : place.end]).text) for place in places if not place.reason)
    share = copied / max(len(skeleton(asked).text), 1)
    if finish == "withheld":
        return "refused"
    if finish == "length" and share < 1 - _MOST_BROKEN:
        return "truncated"
    if not whole:
        return "refused" if share < _LEAST else "unlabelled"
    wrong = {
        "unknown_label": [told and kind is None for told, kind in zip(labelled, kinds, strict=True)],
        "not_found": [told and bool(place.reason) for told, place in zip(labelled, places, strict=True)],
        "nested": [each.nested for each in sections],
    }
    for fault, which in wrong.items():
        if _weight(sections, which) > _MOST * whole:
            return fault
    return "lost" if share < 1 - _MOST_LOST else None


def _weight(sections: Sequence[Section], which: Sequence[bool]) -> int:
    return sum(len(each.text) for each, counts in zip(sections, which, strict=True) if counts)


def _mend(asked: str, sections: Sequence[Section], places: list[Place]) -> int:
    """Place what was paraphrased in the gaps where it is missing; gives how many sections that were."""
    mended = 0
    floor = 0
    runs = [list(group) for _, group in groupby(range(len(places)), lambda index: places[index].reason == "not_found")]
    for run in runs:
        if places[run[0]].reason != "not_found":
            floor = max([floor, *(places[index].end for index in run if not places[index].reason)])
            continue
        behind = [place.start for place in places[run[-1] + 1 :] if not place.reason]
        limit = behind[0] if behind else len(asked)
        for index, place in zip(run, _spread(asked, floor, limit, [sections[i].text for i in run]), strict=True):
            if place is not None:
                places[index] = place
                floor = place.end
                mended += sections[index].label is not None
    return mended


def _spread(text: str, low: int, high: int, segments: Sequence[str]) -> list[Place | None]:
    """Where segments that are no exact copies stand in ``text[low:high]``, in order; None where they differ too much.

    One comparison for all of them, of the characters that matter: each segment reaches from its first common run to its
    last one.
    """
    gap = skeleton(text[low:high])
    skeletons = [skeleton(each).text for each in segments]
    # A copy is about as long as its text. What a judge goes on with behind that costs time alone.
    lengths = accumulate(map(len, skeletons))
    skeletons = [each for each, length in zip(skeletons, lengths, strict=True) if length <= _LONGEST * len(gap.text)]
    blocks = _common(gap.text, "".join(skeletons))
    places: list[Place | None] = []
    begin, floor = 0, low
    for segment in skeletons:
        parts = []  # (start in the gap, size) of what lies in this segment
        for block in blocks:
            first, last = max(block.b, begin), min(block.b + block.size, begin + len(segment))
            if first < last:
                parts.append((block.a + first - block.b, last - first))
        begin += len(segment)
        places.append(None)
        if parts:
            start, end = parts[0][0], parts[-1][0] + parts[-1][1]
            if sum(size for _, size in parts) >= _SHARED * max(end - start, len(segment)):
                first, last = low + gap.offsets[start], low + gap.offsets[end - 1] + 1
                places[-1] = _whole_words(text, max(first, floor), last, floor, high)
                floor = max(floor, last)
    return places + [None] * (len(segments) - len(places))


def _common(text: str, copy: str) -> list[Match]:
    """Runs that both have, in order and apart from one another.

    Compared by runs of ``_RUN`` characters, of which those that a long copy repeats again and again begin no match:
    where both go in circles, time would grow with the square of their lengths.
    """
    first, second = ([each[i : i + _RUN] for i in range(len(each) - _RUN + 1)] for each in (text, copy))
    found: list[Match] = []
    for block in SequenceMatcher(None, first, second).get_matching_blocks():
        over = max(found[-1].a + found[-1].size - block.a, found[-1].b + found[-1].size - block.b, 0) if found else 0
        if block.size > over:
            found.append(Match(block.a + over, block.b + over, block.size + _RUN - 1 - over))
    return found


def _whole_words(text: str, start: int, end: int, low: int, high: int) -> Place:
    """A range that cuts no word at its ends and begins with no sentence's end, within ``low`` and ``high``."""
    while start < end - 1 and (text[start] in _CLOSING or text[start].isspace()):
        start += 1
    while start > low and text[start - 1].isalnum() and text[start].isalnum() and text[start - 1].isascii():
        start -= 1
    while end < high and not text[end].isspace() and text[end].isascii():
        end += 1
    return Place(start, end)
