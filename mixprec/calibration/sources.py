"""From a source to a stream of tokens with weights, and to what provenance says of it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixprec.calibration import hub
from mixprec.calibration.spec import WHY_HELD_OUT, HubSource, TextSource, TraceSource
from mixprec.calibration.windows import Stream, shuffled
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.encoding import Encoder, missing
from mixprec.traces import annotators, store
from mixprec.traces.spans import AnnotatedTrace, token_spans

#: Characters that are tokenized at once: a tokenizer needs some 150 bytes for each.
_PIECE = 1 << 20

Locate = Callable[[str], str]


class Reading(NamedTuple):
    """A source's stream and ``facts`` for provenance; ``identity`` tells sources of different content apart."""

    stream: Stream
    facts: dict[str, Any]
    identity: str


def read(source: TextSource | TraceSource | HubSource, encoder: Encoder, locate: Locate, seed: int) -> Reading:
    """Read and tokenize a source; ``locate`` turns ``data:`` into a path, ``seed`` orders traces that are packed.

    Raises UserError for files that are missing, empty, broken or those that evaluation uses, for traces without
    annotation where behaviours are weighted, and for what ``hub.rows`` refuses.
    """
    if isinstance(source, TextSource):
        return _read_text(source, encoder, locate)
    if isinstance(source, TraceSource):
        return _read_traces(source, encoder, locate, seed)
    return _read_dataset(source, encoder)


def encode(text: str, encoder: Encoder) -> Tensor:
    """Token ids (n,) int32 of a text without special tokens around it, encoded in pieces that end with a line."""
    pieces = [
        torch.tensor((encoder.piece(piece) if number else encoder.own(piece)).ids, dtype=torch.int32)
        for number, piece in enumerate(_pieces(text))
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int32)


def _pieces(text: str, size: int | None = None) -> Iterator[str]:
    """The text cut behind a line's end, or before a blank where lines are longer, so that no word is cut."""
    size = size or _PIECE
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            line, word = text.rfind("\n", start, end) + 1, text.rfind(" ", start + 1, end)
            end = line if line > start else word if word > start else end
        yield text[start:end]
        start = end


def _read_text(source: TextSource, encoder: Encoder, locate: Locate) -> Reading:
    path = Path(locate(source.text)).expanduser()
    text = artifacts.read_text(path)
    if not text.strip():
        raise UserError(f"calibration: {source}: {path} is empty; nothing to calibrate on")
    digest = _sha256(path, str(source))
    tokens = encode(text, encoder)
    facts = {"kind": "text", "name": _name(source.text), "sha256": digest}
    return Reading(Stream(tokens, None, (0, len(tokens))), facts, digest)


def _read_dataset(source: HubSource, encoder: Encoder) -> Reading:
    rows = hub.rows(source)
    # Joined as the released code of GPTQ joins WikiText's rows.
    text = "\n\n".join(rows)
    if not text.strip():
        raise UserError(f"calibration: {source}: column: {source.column} is empty in split {source.split}")
    tokens = encode(text, encoder)
    facts = {"kind": "dataset", **source.model_dump(mode="json", exclude={"share", "loops"}), "rows": len(rows)}
    # Two parts of one split may overlap, so they count as the same source.
    split = source.split.partition("[")[0]
    identity = artifacts.fingerprint(
        source.model_dump(mode="json", include={"dataset", "revision", "name", "column", "files"}), split
    )
    return Reading(Stream(tokens, None, (0, len(tokens))), facts, identity)


def _read_traces(source: TraceSource, encoder: Encoder, locate: Locate, seed: int) -> Reading:
    path = store.locate(locate(source.traces))
    digest = _sha256(path, str(source))
    traces = _annotated(path, source)
    encoded = [_encode_trace(each, source, encoder) for each in traces]
    order = shuffled(len(traces), seed, "order of traces") if source.pack else list(range(len(traces)))
    stream = _joined([encoded[number] for number in order], source, encoder)
    facts: dict[str, Any] = {"kind": "traces", "name": _name(source.traces), "sha256": digest, "traces": len(traces)}
    facts["pack"] = source.pack
    if source.behaviours:
        skipped = sum((each.skipped for each in encoded), Counter[str]())
        for each in traces:
            skipped.update(each.skipped)
        facts |= source.model_dump(mode="json", include={"behaviours", "others", "preset", "annotator"})
        facts["spans"] = dict(sorted(sum((each.spans for each in encoded), Counter[str]()).items()))
        facts["skipped_spans"] = dict(sorted(skipped.items()))
    return Reading(stream, facts, digest)


class _Encoded(NamedTuple):
    """A trace's tokens and weights, the number of its spans by behaviour, and of those without tokens by reason."""

    tokens: list[int]
    weights: Tensor
    spans: Counter[str]
    skipped: Counter[str]


def _annotated(path: Path, source: TraceSource) -> list[AnnotatedTrace]:
    """The traces, with spans where the source weighs behaviours: the file's own, its annotations' or an annotator's."""
    traces = store.load(str(path))
    if not source.behaviours:
        return [AnnotatedTrace(trace, []) for trace in traces]
    if source.annotator == "given":
        return annotators.annotated(str(path), source.preset)
    return [*map(annotators.make(source.annotator, source.preset), traces)]


def _encode_trace(each: AnnotatedTrace, source: TraceSource, encoder: Encoder) -> _Encoded:
    """A trace's tokens, each with the largest factor among the behaviours in whose spans it lies."""
    tokens, offsets = encoder.own(each.trace.text)
    found, skipped = token_spans(each.spans, offsets, len(tokens))
    inside = torch.full((len(tokens),), -1.0)
    factors: dict[str, float] = dict(source.behaviours.items())
    weighed = [span for span in found if span.behaviour in factors]
    for span in weighed:
        inside[span.start : span.end].clamp_(min=factors[span.behaviour])
    weights = torch.where(inside < 0, source.others, inside)
    return _Encoded(tokens, weights, Counter(span.behaviour for span in weighed), skipped)


def _joined(encoded: Sequence[_Encoded], source: TraceSource, encoder: Encoder) -> Stream:
    """Traces in a row; when packed, each with BOS in front and EOS behind, as models are trained on packed text."""
    tokens: list[Tensor] = []
    weights: list[Tensor] = []
    starts = [0]
    for each in encoded:
        before = missing(encoder.head, each.tokens) if source.pack else ()
        ids = [*before, *each.tokens]
        after = [encoder.eos] if source.pack and encoder.eos is not None and ids[-1:] != [encoder.eos] else []
        tokens.append(torch.tensor([*ids, *after], dtype=torch.int32))
        extra = torch.full((1,), source.others)
        weights.append(torch.cat([extra.expand(len(before)), each.weights, extra.expand(len(after))]))
        starts.append(starts[-1] + len(tokens[-1]))
    breaks = (0, starts[-1]) if source.pack else tuple(starts)
    weighed = torch.cat(weights) if source.behaviours else None
    return Stream(torch.cat(tokens), weighed, breaks, source.others)


def _sha256(path: Path, source: str) -> str:
    """The file's digest; refuses the files that evaluation uses under whatever name."""
    digest = artifacts.sha256_file(path)
    if digest in _held_out():
        raise UserError(f"calibration: {source}: the file is {store.HELD_OUT}; {WHY_HELD_OUT}")
    return digest


@functools.cache
def _held_out() -> frozenset[str]:
    both = (store.locate(store.HELD_OUT), store.held_out_text())
    return frozenset(artifacts.sha256_file(path) for path in both)


def _name(source: str) -> str:
    """How provenance calls a source: as the recipe does, but without the folders of a path, which differ by machine."""
    return source if source.startswith(("bundled:", "data:")) else Path(source).name
