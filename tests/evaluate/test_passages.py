"""Passages: every token of a text, and spans where the tokenizer puts their characters."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from mixprec.core.errors import UserError
from mixprec.evaluate import passages
from mixprec.traces.spans import AnnotatedTrace, CharSpan, TokenSpan, char_spans
from mixprec.traces.store import Trace

WORDS = tiny.encoder(bos=False)
WITH_BOS = tiny.encoder(bos=True)


def annotated() -> list[AnnotatedTrace]:
    rows = [Trace(t["id"], "", t["prompt"], t["output"], t["annotated"]) for t in tiny.TRACES]
    return [char_spans(trace, "paper") for trace in rows]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("length", [2, 7, 30, 31, 10_000])
def test_a_text_is_cut_without_losing_or_repeating_a_token(tmp_path: Path, length: int, bos: bool) -> None:
    path = tmp_path / "text.txt"
    path.write_text(tiny.TEXT)
    encoder = WITH_BOS if bos else WORDS
    ids = encoder.own(tiny.TEXT).ids
    found = passages.from_text(str(path), encoder, length)
    assert all(passage.tokens[:1].tolist() == [0] for passage in found if bos)  # <s> in front of each
    joined = torch.cat([passage.tokens[int(bos) :] for passage in found]).tolist()
    # A last token on its own predicts nothing and is left out; behind <s> it is predicted.
    assert joined == (ids[:-1] if not bos and len(ids) % length == 1 else ids)
    assert all(len(passage.tokens) == length for passage in found[:-1])
    assert len(found[-1].tokens) <= length
    assert passages.total_tokens(passages.from_text(str(path), encoder, length, 1)) == min(length, len(ids) + bos)


def test_a_text_that_begins_with_bos_has_one(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(tiny.TEXT)
    plain = passages.from_text(str(path), WITH_BOS, 8)
    for begins in ("<s>", "<s><s>"):
        path.write_text(begins + tiny.TEXT)
        again = passages.from_text(str(path), WITH_BOS, 8)
        assert [each.tokens.tolist() for each in again] == [each.tokens.tolist() for each in plain]


def test_passages_that_bos_fills(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    with pytest.raises(UserError, match="passages of 1 tokens leave no room behind the 1"):
        passages.from_text(str(tmp_path / "text.txt"), WITH_BOS, 1)


@pytest.mark.parametrize("content", ["", " \n\t\n", "a"])
def test_texts_with_nothing_to_predict(tmp_path: Path, content: str) -> None:
    (tmp_path / "text.txt").write_text(content)
    with pytest.raises(UserError, match=r"text\.txt: the text is empty or of one token"):
        passages.from_text(str(tmp_path / "text.txt"), WORDS, 8)


def test_an_empty_text_is_empty_for_a_tokenizer_that_adds_two_tokens(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("")
    eager = tiny.encoder()
    eager.tokenizer.backend_tokenizer.post_processor = tiny.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert len(eager.tokenizer("")["input_ids"]) == 2
    with pytest.raises(UserError, match="the text is empty"):
        passages.from_text(str(tmp_path / "text.txt"), eager, 8)


def test_texts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: can't be read"):
        passages.from_text(str(tmp_path / "gone.txt"), WORDS, 8)
    assert len(passages.from_text("bundled:held_out", WORDS, 512)) > 2


@pytest.mark.parametrize("bos", [False, True])
def test_spans_hold_the_tokens_of_their_text(bos: bool) -> None:
    encoder = tiny.encoder(bos)
    traces = annotated()
    found, skipped = passages.from_traces(traces, encoder, 10_000)
    assert skipped == {}
    for passage, each in zip(found, traces, strict=True):
        assert passage.tokens.tolist() == encoder.tokenizer(each.trace.text)["input_ids"]
        assert len(passage.spans) == len(each.spans) >= 3
        for span, characters in zip(passage.spans, each.spans, strict=True):
            text = encoder.decode(passage.tokens[span.start : span.end])
            assert span.behaviour == characters.behaviour
            assert text.strip() == each.trace.text[characters.start : characters.end]


def test_traces_longer_than_the_context_are_cut_and_counted() -> None:
    traces = annotated()
    whole, _ = passages.from_traces(traces, WITH_BOS, 10_000)
    limit = max(len(passage.tokens) for passage in whole) - 20
    cut, skipped = passages.from_traces(traces, WITH_BOS, limit)
    for passage, full in zip(cut, whole, strict=True):
        assert passage.tokens.tolist() == full.tokens[:limit].tolist()
        assert list(passage.spans) == [span for span in full.spans if span.end <= limit]
    lost = sum(len(p.spans) for p in whole) - sum(len(p.spans) for p in cut)
    assert lost > 0
    assert skipped == {"beyond_context": lost, "cut_traces": sum(len(p.tokens) > limit for p in whole)}


def test_what_the_annotation_lost_is_counted_too() -> None:
    trace = AnnotatedTrace(Trace("a", "", "", "some words"), [CharSpan("deduction", 0, 4)], {"nested": 2})
    [passage], skipped = passages.from_traces(
        [
            trace,
        ],
        WORDS,
        100,
    )
    assert skipped == {"nested": 2}
    assert passage.spans[0] == TokenSpan("deduction", 0, passage.spans[0].end)  # a span may begin at token 0


def test_a_trace_that_predicts_nothing() -> None:
    trace = AnnotatedTrace(Trace("short", "", "", "a"), [])
    with pytest.raises(UserError, match="trace short: 1 tokens; a trace needs at least two"):
        passages.from_traces([trace], WORDS, 100)
