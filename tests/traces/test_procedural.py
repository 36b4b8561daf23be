"""Traces by a procedure: labels by construction, right answers, the same for the same seed."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mixprec.core.errors import UserError
from mixprec.traces import procedural, spans
from mixprec.traces.procedural import numbers, wording
from mixprec.traces.procedural.grammar import Deck, spoken
from mixprec.traces.store import BEHAVIOURS, UNSCORED

MADE = list(procedural.traces(220, seed=3))


def test_alternatives_and_slots() -> None:
    said = {spoken("{so|then} <x> {is|{may|can} be} 7.", random.Random(seed), {"x": "y"}) for seed in range(60)}
    assert said == {f"{so} y {verb} 7." for so in ("So", "Then") for verb in ("is", "may be", "can be")}


def test_a_sentence_begins_with_a_capital_and_a_variable_stays() -> None:
    chance = random.Random(0)
    assert spoken("  the end . a cat, it's  here", chance) == "The end. A cat, it's here"
    assert spoken("x = 7.", chance) == "x = 7."


def test_an_open_brace_is_refused() -> None:
    with pytest.raises(ValueError, match="isn't closed"):
        spoken("{a|b", random.Random(0))


def test_a_deck_is_drawn_to_its_end_before_it_repeats() -> None:
    deck = Deck("abcde", random.Random(1))
    first, second = ([deck.draw() for _ in range(5)] for _ in range(2))
    assert sorted(first) == sorted(second) == list("abcde")


def test_every_template_can_be_spoken() -> None:
    names = ("task", "topic", "way", "fact", "step", "wrong", "case", "outcome", "given", "answer")
    slots = {name: f"THE {name.upper()}" for name in names}
    templates = [each for name in dir(wording) if name.isupper() and name[0] != "_" for each in getattr(wording, name)]
    for template in templates:
        for seed in range(20):
            assert not set("{}|<>") & set(spoken(template, random.Random(seed), slots)), template


def test_the_sections_are_the_reasoning() -> None:
    for trace, sections, gold in MADE:
        found = spans.char_spans(trace, "aligned")
        assert [trace.text[span.start : span.end] for span in found.spans] == [section.text for section in sections]
        assert [span.behaviour for span in found.spans] == [section.behaviour for section in sections]
        assert not found.skipped
        assert trace.output.endswith(f"</think>\n\nThe answer is **{gold}**.")


def test_no_grammar_is_left_in_the_text() -> None:
    for trace, _, _ in MADE:
        assert not re.search(r"[{}|]|<\w+>", trace.output.replace("</think>", "")), trace.output


def test_every_kind_shows_every_behaviour_but_a_tried_case_perhaps() -> None:
    for kind in procedural.KINDS:
        shown = Counter(s.behaviour for made in MADE if made.trace.dataset == kind for s in made.sections)
        optional = {"example_testing"} if kind == "timetable" else set()
        assert set(shown) | optional == {*BEHAVIOURS, *UNSCORED}, kind


def test_wording_varies() -> None:
    doubts = [s.text for made in MADE for s in made.sections if s.behaviour == "uncertainty_estimation"]
    assert len(set(doubts)) > 0.6 * len(doubts)


def test_a_longer_list_begins_alike_and_another_seed_does_not() -> None:
    assert list(procedural.traces(5, seed=3)) == MADE[:5]
    assert next(procedural.traces(1, seed=4)) != MADE[0]


@pytest.mark.parametrize("seed", range(30))
def test_the_answers_are_right(seed: int) -> None:
    def numbers_in(text: str) -> list[int]:
        return [int(each) for each in re.findall(r"\d+", text)]

    counted = numbers.counting(random.Random(seed))
    low, limit, a, b = numbers_in(counted.prompt)
    assert int(counted.answer) == sum(n % a == 0 or n % b == 0 for n in range(low, limit + 1))
    power = numbers.remainders(random.Random(seed))
    base, exponent, modulus = numbers_in(power.prompt)
    assert int(power.answer) == base**exponent % modulus
    summed = numbers.progression(random.Random(seed))
    first, step, terms = numbers_in(summed.prompt)
    assert int(summed.answer) == sum(first + step * n for n in range(terms))
    total, k, weighted = numbers_in(numbers.equations(random.Random(seed)).prompt)
    x = (weighted - total) // (k - 1)
    assert int(numbers.equations(random.Random(seed)).answer) == x * (total - x)


@pytest.mark.parametrize("seed", range(30))
def test_the_order_is_that_of_the_clues(seed: int) -> None:
    problem = procedural.KINDS["ordering"](random.Random(seed))
    above = dict(re.findall(r"(\w+) is \w+ than (\w+)", problem.prompt))
    (top,) = set(above) - set(above.values())
    order = [top]
    while order[-1] in above:
        order.append(above[order[-1]])
    assert len(order) == 5 and order[2] == problem.answer


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="kinds: 'poems' is unknown, known are arithmetic"):
        procedural.traces(1, kinds=["poems"])
    with pytest.raises(UserError, match="kinds: none given"):
        procedural.traces(1, kinds=[])
