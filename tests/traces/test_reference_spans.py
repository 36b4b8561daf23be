"""The released rule on the paper's 120 annotated traces, against the spans of the released code."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mixprec.core import artifacts
from mixprec.traces import spans, store
from mixprec.traces.annotate import LABELS, parse
from mixprec.traces.matching import longest_block


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "r1_distill_llama_8b_awq_traces"


@pytest.fixture(scope="module")
def traces(folder: Path) -> list[store.Trace]:
    return store.load(str(folder / "traces.jsonl"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> list[dict[str, Any]]:
    return artifacts.read_jsonl(folder / "reference_spans.jsonl")


def test_every_segment_is_the_references(traces: list[store.Trace], reference: list[dict[str, Any]]) -> None:
    started = time.process_time()
    segments = 0
    for trace, row in zip(traces, reference, strict=True):
        for segment, expected in zip(parse(trace.annotated or "", "released").segments, row["segments"], strict=True):
            block = longest_block(trace.text, segment.text)
            found = {
                "behaviour": segment.behaviour,
                "text_chars": len(segment.text),
                "start": block.start,
                "end": block.start + block.size,
                "coverage": round(block.size / len(segment.text), 6),
                "kept": block.size / len(segment.text) >= spans.THRESHOLD,
            }
            assert found == {"behaviour": LABELS[expected["label"]]} | {
                key: expected[key] for key in found if key != "behaviour"
            }, trace.id
            segments += 1
    assert segments == 6784
    assert time.process_time() - started < 60


def test_released_spans_are_the_kept_ones(traces: list[store.Trace], reference: list[dict[str, Any]]) -> None:
    for trace, row in zip(traces, reference, strict=True):
        annotated = spans.char_spans(trace, "released")
        kept = [segment for segment in row["segments"] if segment["kept"]]
        assert annotated.spans == [(LABELS[segment["label"]], segment["start"], segment["end"]) for segment in kept]
        assert annotated.skipped.get("low_coverage", 0) == len(row["segments"]) - len(kept)


def test_real_segments_against_difflib(traces: list[store.Trace]) -> None:
    """Not only through the reference file: difflib itself, on segments that take its popularity heuristic."""
    long = [
        (trace.text, segment.text)
        for trace in traces
        if len(trace.text) < 5000
        for segment in parse(trace.annotated or "", "released").segments
        if len(segment.text) >= 200
    ]
    assert len(long) > 20
    for text, segment in long[:60]:
        blocks = difflib.SequenceMatcher(None, text, segment).get_matching_blocks()
        assert longest_block(text, segment) == max(blocks, key=lambda block: block.size)


def test_paper_rule_leaves_out_nested_segments_and_prompts(traces: list[store.Trace]) -> None:
    annotated = [spans.char_spans(trace, "paper") for trace in traces]
    assert spans.summarise(annotated).skipped["nested"] == 170
    for each in annotated:
        assert all(span.start >= len(each.trace.prompt) for span in each.spans)


def test_aligned_rule_accounts_for_every_section(traces: list[store.Trace]) -> None:
    for trace in traces:
        each = spans.char_spans(trace, "aligned")
        segments = parse(trace.annotated or "", "aligned").segments
        unplaced = sum(each.skipped.get(reason, 0) for reason in ("empty", "out_of_order", "not_found"))
        assert len(each.spans) + unplaced == len(segments)
        ends = [len(trace.prompt), *(span.end for span in each.spans)]
        assert all(end <= span.start < span.end for end, span in zip(ends, each.spans, strict=False)), trace.id


def test_aligned_rule_wins(traces: list[store.Trace]) -> None:
    total: Counter[str] = Counter()
    for behaviour, outcomes in spans.compare_rules(traces).items():
        assert outcomes["won"] > 10 * outcomes["lost"], behaviour
        total += outcomes
    assert total["same"] + total["moved"] + total["lost"] == 5762  # what released keeps
    assert total["won"] > 2000
    assert total["moved"] >= 207  # spans that the released rule puts at the first of several occurrences
