"""Placing segments in reading order, against an exhaustive search on small cases."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.traces.alignment import align, skeleton


def placed(text: str, segments: list[str], threshold: float = 0.9) -> list[str | tuple[int, int]]:
    return [place.reason or (place.start, place.end) for place in align(text, segments, threshold)]


def test_repeated_sentence_maps_to_its_own_occurrence() -> None:
    text = "Wait. It is two. Wait. It is three."
    assert placed(text, ["It is two.", "Wait.", "It is three."]) == [(6, 16), (17, 22), (23, 35)]
    assert placed(text, ["Wait.", "It is two."]) == [(0, 5), (6, 16)]


def test_a_sentence_stays_with_its_neighbours() -> None:
    """Both places of 'Hmm.' are possible for the second segment; the one that leaves no gap is right."""
    text = "One. Two is next. Hmm. Three. Hmm. Four."
    assert placed(text, ["Three.", "Hmm.", "Four."])[1] == (30, 34)
    assert placed(text, ["One.", "Hmm.", "Four."])[1] == (30, 34)
    assert placed(text, ["Two is next.", "Hmm.", "Four."])[1] == (18, 22)


def test_reasons() -> None:
    text = "A long first sentence. Then the second."
    assert placed(text, ["Then the second.", "sentence."]) == [(23, 39), "out_of_order"]
    assert placed(text, ["Nothing of this.", "** **"]) == ["not_found", "empty"]


def test_white_space_emphasis_and_delimiters_do_not_matter() -> None:
    text = "So,\n\n**theta** is\n 2^{10} = 1024."
    assert placed(text, ["So, \\( \\theta \\) is", "\\(2^10=1024\\)."]) == [(0, 17), (19, len(text))]
    assert placed("It’s “so”.", ['It\'s "so".']) == [(0, 10)]


def test_edges_belong_to_the_span() -> None:
    text = "**Answer:** \\( x \\)"
    assert placed(text, ["**Answer:**", "\\( x \\)"]) == [(0, 11), (12, 19)]
    assert placed(text, ["Answer:", "x"]) == [(2, 9), (15, 16)]


def test_nearly_equal_segment_is_looked_for_between_its_neighbours() -> None:
    text = "Start here. However we know that the sum is even. End here."
    assert placed(text, ["Start here.", "Now we know that the sum is even.", "End here."], 0.8) == [
        (0, 11),
        (20, 49),
        (50, 59),
    ]
    assert placed(text, ["Start here.", "Now we know that the sum is even.", "End here."], 0.99)[1] == "not_found"


def best_by_trying_everything(text: str, segments: list[str]) -> tuple[int, int]:
    """Matched characters and direct successions of the best chain."""
    choices = [[None, *(at for at in range(len(text)) if text.startswith(segment, at))] for segment in segments]
    best = (0, 0)
    for starts in product(*choices):
        ranges = [(at, at + len(text)) for at, text in zip(starts, segments, strict=True) if at is not None]
        pairs = list(pairwise(ranges))
        if all(one[1] <= two[0] for one, two in pairs):
            score = sum(end - start for start, end in ranges), sum(one[1] == two[0] for one, two in pairs)
            best = max(best, score)
    return best


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ab", max_size=9),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=4),
)
def test_the_chain_is_the_best_there_is(text: str, segments: list[str]) -> None:
    places = [place for place in align(text, segments, threshold=1.01) if not place.reason]
    joints = sum(one.end == two.start for one, two in pairwise(places))
    assert all(one.end <= two.start for one, two in pairwise(places))
    assert (sum(place.end - place.start for place in places), joints) == best_by_trying_everything(text, segments)


@given(st.text(max_size=60))
def test_skeleton_offsets_point_at_what_they_stand_for(text: str) -> None:
    kept, offsets = skeleton(text)
    straight = {"“": '"', "”": '"', "‘": "'", "’": "'"}
    assert kept == "".join(straight.get(text[at], text[at]) for at in offsets)
    assert offsets == sorted(set(offsets))
