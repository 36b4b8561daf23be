"""The lexical annotator: its syntax, and how far it agrees with GPT-4o."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.traces import spans, store
from mixprec.traces.annotate import parse
from mixprec.traces.cues import annotate_with_cues
from mixprec.traces.store import Trace

OUTPUT = """Okay, so I need to find the sum. Let me break it down.

The sum is even. So it is 4. Wait, no, that's wrong. Alternatively, I could count.

I'm not sure about that. I recall that two and two is four.

For example, take two apples.
</think>
Wait, this is the answer."""


def trace(output: str) -> Trace:
    return Trace("a", "", "What?\n", output)


def test_labels_and_merging() -> None:
    parsed = parse(annotate_with_cues(trace(OUTPUT)), "released")
    assert [(segment.behaviour, segment.text) for segment in parsed.segments] == [
        ("initializing", "Okay, so I need to find the sum. Let me break it down."),
        ("deduction", "The sum is even. So it is 4."),
        ("backtracking", "Wait, no, that's wrong. Alternatively, I could count."),
        ("uncertainty_estimation", "I'm not sure about that."),
        ("adding_knowledge", "I recall that two and two is four."),
        ("example_testing", "For example, take two apples."),
    ]


@pytest.mark.parametrize("output", ["", "</think> So four.", "\n \n</think>"])
def test_without_reasoning_there_is_nothing_to_annotate(output: str) -> None:
    assert annotate_with_cues(trace(output)) == ""


@pytest.mark.parametrize(
    "form",
    ["<think>\n{}</think>\n4", "<think>\n{}", "[THINK]{}[/THINK]4", "analysis{}assistantfinal4", "{}</seed:think>4"],
)
def test_tags_are_no_reasoning(form: str) -> None:
    """What opens or closes a thinking belongs to no behaviour, whichever model's it is."""
    reasoning = OUTPUT.partition("</think>")[0]
    bare, tagged = (parse(annotate_with_cues(trace(each)), "released") for each in (reasoning, form.format(reasoning)))
    assert tagged.segments == bare.segments


@given(st.text(alphabet="aW.?!\n ,’", max_size=60))
def test_sections_cover_the_reasoning_word_for_word(output: str) -> None:
    annotated = replace(trace(output), annotated=annotate_with_cues(trace(output)))
    found = spans.char_spans(annotated, "aligned")
    assert {"not_found", "out_of_order"}.isdisjoint(found.skipped)
    labelled = "".join(segment.text for segment in parse(annotated.annotated or "", "released").segments)
    assert "".join(labelled.split()) == "".join(output.split())


def test_agreement_with_gpt_4o(shared_data: Path) -> None:
    """Far better than chance: at least twice the share that each behaviour has of the characters."""
    path = shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"
    pairs: Counter[tuple[str, str]] = Counter()
    for each in store.load(str(path)):
        if len(each.output) < 30_000:
            cued = replace(each, annotated=annotate_with_cues(each))
            theirs, ours = characters(each, "released"), characters(cued, "aligned")
            pairs.update((theirs[at], ours[at]) for at in theirs.keys() & ours.keys())
    total = sum(pairs.values())
    assert sum(count for (one, two), count in pairs.items() if one == two) / total > 0.5
    for behaviour in store.BEHAVIOURS:
        labelled = sum(count for (_, ours), count in pairs.items() if ours == behaviour)
        share = sum(count for (theirs, _), count in pairs.items() if theirs == behaviour) / total
        assert pairs[behaviour, behaviour] / labelled > 2 * share, behaviour


def characters(annotated: Trace, rule: spans.Rule) -> dict[int, str]:
    """Behaviour of every labelled character."""
    found = spans.char_spans(annotated, rule).spans
    return {at: span.behaviour for span in found for at in range(span.start, span.end)}
