"""Samples from traces: packed or not, and weights by behaviour against a plain reference, character by character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import PreTrainedTokenizerFast

from mixprec.calibration import data
from mixprec.calibration.spec import CalibrationSpec
from mixprec.core.errors import UserError
from mixprec.models.encoding import Encoder
from mixprec.traces import cues, spans, store
from mixprec.traces.spans import AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

WORDS = tiny.tokenizer(bos=False)
WITH_BOS = tiny.tokenizer(bos=True)
BOS, EOS = 0, 1


def char_weights(text: str, found: list[CharSpan], factors: dict[str, float], others: float) -> list[float]:
    """The weight of every character: the largest factor of a span that holds it."""
    return [
        max((factors[s.behaviour] for s in found if s.behaviour in factors and s.start <= at < s.end), default=others)
        for at in range(len(text))
    ]


def token_weights(text: str, found: list[CharSpan], factors: dict[str, float], others: float) -> list[float]:
    """The weight of every token: a token with a character in a span counts as in it."""
    weights = char_weights(text, found, factors, others)
    inside = [any(s.behaviour in factors and s.start <= at < s.end for s in found) for at in range(len(text))]
    offsets = WORDS(text, return_offsets_mapping=True)["offset_mapping"]
    return [max((weights[at] for at in range(*place) if inside[at]), default=others) for place in offsets]


def write(path: Path, *outputs: str) -> str:
    """A file of traces without annotations."""
    tiny.write_traces(path, *({"id": str(n), "prompt": f"P{n}.", "output": text} for n, text in enumerate(outputs)))
    return str(path)


def tokens_of(found: data.Calibration) -> list[list[int]]:
    rows: list[list[int]] = found.tokens.tolist()
    return rows


def test_packed_samples_tile_the_traces(load: Any, traces: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every sample is a piece of the traces in some order, EOS behind each, BOS in front of each and of each sample."""
    bos = tokenizer("a")["input_ids"][0] == BOS
    length = 24
    one = load(tokenizer, traces=str(traces), samples=1, tokens=length)
    available = one.described["sources"][0]["windows"]
    found = load(tokenizer, traces=str(traces), samples=available, tokens=length, loops="keep")
    front = [BOS] if bos else []
    whole = [front + WORDS(t.text)["input_ids"] + [EOS] for t in store.load(str(traces))]
    assert one.described["sources"][0]["tokens_read"] == sum(len(ids) for ids in whole)
    rows = tokens_of(found)
    assert len({tuple(row) for row in rows}) == len(rows)
    for row in rows:
        assert len(row) == length and (not bos or row[0] == BOS) and row[:2] != [BOS, BOS]
        # Between an EOS and the next one lie tokens of one trace only.
        body = row[1:] if bos else row
        parts = [[]]
        for token in body:
            parts[-1].append(token)
            if token == EOS:
                parts.append([])
        assert all(any(_inside(part, ids) for ids in whole) for part in parts)
        # Without EOS in between, no trace is followed by another one.
        assert sum(token == EOS for token in row) >= sum(token == BOS for token in row[1:])
    covered = sum(len(row) for row in rows) - (sum(row[0] == BOS for row in rows) if bos else 0)
    assert covered <= sum(len(ids) for ids in whole)


def _inside(part: list[int], whole: list[int]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def test_samples_within_traces(load: Any, traces: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    front = [BOS] if tokenizer("a")["input_ids"][0] == BOS else []
    step = 20 - len(front)
    expected = []
    for trace in store.load(str(traces)):
        ids = WORDS(trace.text)["input_ids"]
        expected += [front + ids[at : at + step] for at in range(0, len(ids) - step + 1, step)]
    found = load(tokenizer, traces=str(traces), samples=len(expected), tokens=20, pack=False, loops="keep")
    assert sorted(tokens_of(found)) == sorted(expected)
    with pytest.raises(UserError, match=r"give \d+ samples of 20; 99 are asked for; .* or set pack: true, which runs"):
        load(tokenizer, traces=str(traces), samples=99, tokens=20, pack=False)


def test_short_traces_need_packing(tmp_path: Path, load: Any) -> None:
    source = write(tmp_path / "short.jsonl", *(f"The answer is {n * n + 3}." for n in range(12)))
    with pytest.raises(UserError, match=r"give 0 samples of 64; 1 are asked for; .* pack: true"):
        load(traces=source, samples=1, tokens=64, pack=False)
    found = load(traces=source, samples=1, tokens=64)
    assert found.tokens.shape == (1, 64)
    # All in one sample: the same traces, in an order that follows the seed.
    total = found.described["sources"][0]["tokens_read"]
    texts = [
        WORDS.decode(load(traces=source, samples=1, tokens=total, seed=seed).tokens[0]).split("</s>")
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert (
        sorted(texts[0]) == sorted(texts[2]) == sorted(["", *(f"P{n}.The answer is {n * n + 3}." for n in range(12))])
    )


def test_a_prompt_that_says_bos_itself(tmp_path: Path, load: Any) -> None:
    texts = ["<s>Six apples, four pears.</s>", "<s>Two pears and three apples.</s>"]
    path = tmp_path / "own.jsonl"
    tiny.write_traces(path, *({"id": str(n), "prompt": "", "output": text} for n, text in enumerate(texts)))
    length = min(len(WORDS(text)["input_ids"]) for text in texts)
    for pack in (True, False):
        found = load(WITH_BOS, traces=str(path), samples=1, tokens=length, pack=pack)
        row = tokens_of(found)[0]
        assert row[0] == BOS and BOS not in row[1:2] and row.count(EOS) <= 1
    # Nothing is added to them: what was read is what is written there.
    assert found.described["sources"][0]["tokens_read"] == sum(len(WORDS(text)["input_ids"]) for text in texts)


@pytest.mark.parametrize("others", [1.0, 0.5, 0.0])
def test_weights_against_characters(load: Any, traces: Path, others: float) -> None:
    factors = {"backtracking": 4.0, "uncertainty_estimation": 2.0, "deduction": 0.25}
    found = load(traces=str(traces), samples=9, tokens=20, pack=False, behaviours=factors, others=others, loops="keep")
    expected = {}
    for trace in store.load(str(traces)):
        ids = WORDS(trace.text)["input_ids"]
        weights = token_weights(trace.text, spans.char_spans(trace, "paper").spans, factors, others)
        for at in range(0, len(ids) - 19, 20):
            expected[tuple(ids[at : at + 20])] = weights[at : at + 20]
    assert found.weights is not None and found.weights.shape == found.tokens.shape
    assert found.weights.dtype == torch.float32
    for row, weights in zip(tokens_of(found), found.weights.tolist(), strict=True):
        assert weights == expected[tuple(row)]
        assert any(weights)
    assert {0.25, 2.0, 4.0} <= set(found.weights.flatten().tolist())
    [described] = found.described["sources"]
    empty = sum(not any(weights) for weights in expected.values())
    assert (described["windows"], described["windows_without_weight"]) == (len(expected), empty)
    assert described["behaviours"] == factors and described["others"] == others and described["preset"] == "paper"


@pytest.mark.parametrize("factors", [{"backtracking": 2.0, "deduction": 3.0}, {"backtracking": 3.0, "deduction": 0.0}])
def test_overlapping_spans_take_the_larger_factor(tmp_path: Path, load: Any, factors: dict[str, float]) -> None:
    """Spans as ``mixprec annotate`` writes them are read as they are; these overlap, one cuts a word."""
    text = "Six apples and four pears lie on the table."
    found = [CharSpan("backtracking", 2, 19), CharSpan("deduction", 9, 30), CharSpan("initializing", 0, 43)]
    each = AnnotatedTrace(Trace("a", "", "", text), found)
    path = tmp_path / "spans.jsonl"
    spans.save_spans(path, [each])
    length = len(WORDS(text)["input_ids"])
    loaded = load(traces=str(path), samples=1, tokens=length, pack=False, behaviours=factors)
    assert loaded.weights is not None
    assert loaded.weights[0].tolist() == token_weights(text, found, factors, 1.0)
    assert loaded.described["sources"][0]["spans"] == {"backtracking": 1, "deduction": 1}


def test_special_tokens_weigh_as_others(load: Any, traces: Path) -> None:
    for pack in (True, False):
        found = load(
            WITH_BOS, traces=str(traces), samples=4, tokens=24, pack=pack, behaviours={"backtracking": 4}, others=0.5
        )
        assert found.weights is not None
        assert torch.equal(found.weights[found.tokens <= 1].unique(), torch.tensor([0.5]))


def test_a_mix_with_weights(load: Any, traces: Path, text: Path) -> None:
    mix = [{"text": str(text)}, {"traces": str(traces), "behaviours": {"backtracking": 4}}]
    found = load(sources=mix, samples=20, tokens=24)
    from_text = torch.tensor([WORDS.decode(row) in text.read_text() for row in found.tokens])
    assert found.weights is not None and int(from_text.sum()) == 10
    assert bool((found.weights[from_text] == 1).all())
    assert set(found.weights[~from_text].unique().tolist()) == {1.0, 4.0}
    shares = [source["weight_share"] for source in found.described["sources"]]
    assert shares[0] == pytest.approx(240 / float(found.weights.sum()), abs=1e-4)
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_weights_are_in_the_digest(load: Any, traces: Path) -> None:
    options = {"traces": str(traces), "samples": 4, "tokens": 24}
    plain = load(**options)
    weighed = [load(**options, behaviours={"backtracking": factor}) for factor in (1, 2)]
    assert all(torch.equal(plain.tokens, each.tokens) for each in weighed)
    assert len({plain.digest, *(each.digest for each in weighed)}) == 3


def test_traces_without_annotation(tmp_path: Path, load: Any) -> None:
    output = "Six apples. Wait, that is not right, let me check again. There are four pears and two apples."
    source = write(tmp_path / "bare.jsonl", output)
    assert load(traces=source, samples=1, tokens=8).weights is None
    with pytest.raises(UserError, match=r"trace '0' has no annotation; .*\(annotator: classifier\)"):
        load(traces=source, samples=1, tokens=8, behaviours={"backtracking": 2})
    length = len(WORDS("P0." + output)["input_ids"])
    found = load(traces=source, samples=1, tokens=length, pack=False, behaviours={"backtracking": 2}, annotator="cues")
    trace = Trace("0", "", "P0.", output)
    heard = Trace("0", "", "P0.", output, cues.annotate_with_cues(trace))
    expected = token_weights(trace.text, spans.char_spans(heard, "aligned").spans, {"backtracking": 2.0}, 1.0)
    assert found.weights is not None and found.weights[0].tolist() == expected
    assert 2.0 in expected and 1.0 in expected


def test_no_span_at_all(tmp_path: Path, load: Any, traces: Path) -> None:
    rows = [{**row, "annotated": '["deduction"] Four. ["end-section"]'} for row in tiny.TRACES]
    path = tiny.write_traces(tmp_path / "dull.jsonl", *rows)
    with pytest.raises(UserError, match="every token has weight 0, no span of the behaviours lies in its samples"):
        load(traces=str(path), samples=1, tokens=16, behaviours={"backtracking": 1}, others=0)
    with pytest.raises(UserError, match=r"\d+ of them without any weight; 90 are asked for"):
        load(traces=str(traces), samples=90, tokens=4, behaviours={"backtracking": 1}, others=0)


def test_what_has_no_span_is_counted(tmp_path: Path, load: Any) -> None:
    row = {**tiny.TRACES[0], "annotated": tiny.TRACES[0]["annotated"] + ' ["musing"] Hm. ["end-section"]'}
    path = tiny.write_traces(tmp_path / "odd.jsonl", row)
    found = load(traces=str(path), samples=1, tokens=16, behaviours={"backtracking": 2})
    assert found.described["sources"][0]["skipped_spans"] == {"unknown_label": 1}


def test_broken_traces(tmp_path: Path, load: Any) -> None:
    (tmp_path / "broken.jsonl").write_text(json.dumps({"id": "a", "prompt": "p"}) + "\n")
    with pytest.raises(UserError, match=r"broken\.jsonl: trace 1: key 'output' is missing"):
        load(traces="data:broken.jsonl")
    with pytest.raises(UserError, match="bundled sets are"):
        load(traces="bundled:nothing")


def test_bundled_traces_work_offline() -> None:
    spec = CalibrationSpec.model_validate({"traces": "bundled:attribution", "samples": 16, "tokens": 512})
    found = data.load(spec, Encoder(WORDS, len(WORDS)), str, 8192)
    assert found.tokens.shape == (16, 512)
    assert found.described["sources"][0]["name"] == "bundled:attribution"
