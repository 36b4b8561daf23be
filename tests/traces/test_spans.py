"""Spans of characters and tokens, and their file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.models.load import LoadedModel
from mixprec.traces import spans
from mixprec.traces.spans import AnnotatedTrace, CharSpan, TokenSpan
from mixprec.traces.store import Trace

PROMPT = "Wait. What is 2 + 2?\n"
OUTPUT = "Let me see. It is 5. Wait. It is 4."
ANNOTATED = (
    '["deduction"] It is 5. ["end-section"] ["backtracking"] Wait. ["end-section"] ["deduction"] ok ["end-section"]'
)
TRACE = Trace("sum/1", "sum", PROMPT, OUTPUT, ANNOTATED)


def cut(annotated: AnnotatedTrace) -> list[tuple[str, str]]:
    return [(span.behaviour, annotated.trace.text[span.start : span.end]) for span in annotated.spans]


@pytest.mark.parametrize(("rule", "start"), [("released", 0), ("paper", 42), ("aligned", 42)])
def test_where_each_rule_puts_a_sentence_that_the_prompt_has_too(rule: spans.Rule, start: int) -> None:
    annotated = spans.char_spans(TRACE, rule)
    assert cut(annotated) == [("deduction", "It is 5."), ("backtracking", "Wait.")]
    assert annotated.spans[1].start == start
    assert annotated.skipped == {"not_found" if rule == "aligned" else "low_coverage": 1}


def test_threshold() -> None:
    trace = Trace("a", "", "", "abcdefghi!", '["deduction"] abcdefghij ["end-section"]')
    assert spans.char_spans(trace, "released", 0.9).spans == [("deduction", 0, 9)]
    assert spans.char_spans(trace, "released", 0.95).spans == []


def test_trace_without_annotation() -> None:
    with pytest.raises(UserError, match=r"sum/1.*no annotation"):
        spans.char_spans(Trace("sum/1", "sum", PROMPT, OUTPUT), "released")


def test_compare_rules() -> None:
    outcomes = spans.compare_rules([TRACE, Trace("b", "", "", "ab cd", '["deduction"] ab ["backtracking"] cd')])
    assert outcomes["deduction"] == {"same": 1, "won": 1}
    assert outcomes["backtracking"] == {"moved": 1, "won": 1}


def linear_scan(
    found: list[CharSpan], offsets: list[tuple[int, int]], limit: int
) -> tuple[list[TokenSpan], Counter[str]]:
    """The definition, token by token."""
    tokens, skipped = [], Counter[str]()
    for behaviour, start, end in found:
        first = next((i for i, (s, e) in enumerate(offsets) if s <= start < e), None)
        last = next((i for i, (s, e) in enumerate(offsets) if s < end <= e), None)
        if first is None or last is None:
            skipped["no_token"] += 1
        elif last >= limit:
            skipped["beyond_context"] += 1
        else:
            tokens.append(TokenSpan(behaviour, first, last + 1))
    return tokens, skipped


@st.composite
def ordered_offsets(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Tokens with gaps, several tokens on one character, overlaps, empty ones and special ones."""
    offsets, start, end = [], 0, 0
    for _ in range(draw(st.integers(0, 15))):
        kind = draw(st.sampled_from(["next", "next", "overlap", "same", "empty", "special"]))
        if kind == "special":
            offsets.append((0, 0))
            continue
        if kind == "empty":
            offsets.append((end, end))
            continue
        if kind == "next":
            start = end + draw(st.integers(0, 2))
        elif kind == "overlap":
            start = draw(st.integers(start, end))
        end = max(end, start + draw(st.integers(1, 3)))
        offsets.append((start, end))
    return offsets


@given(
    ordered_offsets(),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=6),
    st.integers(0, 16),
)
def test_token_spans_agree_with_a_linear_scan(
    offsets: list[tuple[int, int]], ranges: list[tuple[int, int]], limit: int
) -> None:
    found = [CharSpan("backtracking", start, start + length) for start, length in ranges]
    assert spans.token_spans(found, offsets, limit) == linear_scan(found, offsets, limit)


def test_unordered_offsets_are_refused() -> None:
    with pytest.raises(UserError, match="not in order"):
        spans.token_spans([], [(5, 6), (0, 3)], 10)


def test_token_spans_of_a_real_tokenizer(smollm2: LoadedModel) -> None:
    text = TRACE.text + " Ünï → 🙂 done."
    encoding = smollm2.tokenizer(text, return_offsets_mapping=True)
    at = text.index("Ünï")
    found = [CharSpan("backtracking", 0, 5), CharSpan("deduction", at, text.index(" done"))]
    tokens, skipped = spans.token_spans(found, encoding["offset_mapping"], len(encoding["input_ids"]))
    assert not skipped
    decoded = [smollm2.tokenizer.decode(encoding["input_ids"][span.start : span.end]) for span in tokens]
    assert [text.strip() for text in decoded] == ["Wait.", "Ünï → 🙂"]
    assert spans.token_spans(found, encoding["offset_mapping"], 10)[1] == {"beyond_context": 1}


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    annotated = [
        spans.char_spans(Trace(TRACE.id, TRACE.dataset, PROMPT, OUTPUT + "\u2028\f", ANNOTATED), "aligned"),
        AnnotatedTrace(Trace("plain", "", "p", "o"), [], {}),
    ]
    spans.save_spans(path, annotated)
    loaded = spans.load_spans(path)
    assert [(each.trace.id, each.trace.text, each.spans, each.skipped) for each in loaded] == [
        (each.trace.id, each.trace.text, each.spans, each.skipped) for each in annotated
    ]
    summary = spans.summarise(loaded)
    assert (summary.traces, summary.traces_without_span) == (2, 1)
    assert (
        summary.spans["deduction"],
        summary.traces_with["deduction"],
        summary.spans["example_testing"],
    ) == (1, 1, 0)
    assert summary.skipped == {"not_found": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": None}, "key 'spans'"),
        ({"skipped": {"empty": "1"}}, "key 'skipped'"),
        ({"spans": [{"behaviour": "dreaming", "start": 0, "end": 1}]}, "'dreaming' is unknown"),
        (
            {"spans": [{"behaviour": "backtracking", "start": 0, "end": 3}]},
            "no range in the text's 2 characters",
        ),
        ({"spans": [{"behaviour": "backtracking", "start": 1, "end": 1}]}, "no range"),
        ({"spans": [{"behaviour": "backtracking", "start": -1, "end": 1}]}, "no range"),
        ({"spans": [{"behaviour": "backtracking", "start": 0.0, "end": 1}]}, "no range"),
        ({"spans": [{"behaviour": "backtracking", "start": 0}]}, "expected the keys"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "spans.jsonl"
    good = {"id": "a", "dataset": "", "prompt": "p", "output": "o", "spans": [], "skipped": {}}
    path.write_text("\n".join(json.dumps(row) for row in (good, good | {"id": "b"} | change)))
    with pytest.raises(UserError, match=message) as caught:
        spans.load_spans(path)
    assert f"{path}:2 (b)" in str(caught.value)
