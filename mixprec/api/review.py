"""review: the page on which a person looks through annotations and corrects them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixprec.api.checking import AnyModel, checkpoint_of, model_of
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.core.progress import OnStep, telling
from mixprec.report.review import TokenKL, write_review
from mixprec.results.checkpoint import Checkpoint
from mixprec.results.spans import Spans
from mixprec.traces import annotators
from mixprec.traces.spans import AnnotatedTrace


@typed()
def review(
    spans: Spans | str | Path,
    out: str | Path,
    *,
    checkpoint: Checkpoint | AnyModel | None = None,
    reference: AnyModel | None = None,
    max_tokens: int | None = None,
    first: int | None = None,
    progress: OnStep | None = None,
) -> Path:
    """Write one HTML page, which asks no network, to look through ``spans`` and correct them.

    ``spans``: a value, or a file of spans or annotated traces; what the page saves is such a file. ``checkpoint`` and
    ``reference``, its original: tokens are underlined by KL(original || compressed), up to ``max_tokens`` of a trace.
    ``first``: only so many traces.

    Raises UserError where only one of both models is given, or their tokens differ.
    """
    if (checkpoint is None) != (reference is None):
        raise UserError("mixprec review: checkpoint and reference go together: KL is between both; give the other one")
    found = list(spans) if isinstance(spans, Spans) else annotators.annotated(str(spans), "paper")
    found = found[:first]
    name = "spans.jsonl" if isinstance(spans, Spans) else Path(spans).name
    kl, of = None, ""
    with telling(progress):
        if checkpoint is not None and reference is not None:
            original = model_of(reference)
            model = checkpoint_of(checkpoint, original)
            of, kl = Path(model.id).name, _divergence(model, original, found, max_tokens)
        write_review(found, name, Path(out), kl, of)
    return Path(out)


def _divergence(model: Any, original: Any, traces: Sequence[AnnotatedTrace], max_tokens: int | None) -> TokenKL:
    """KL at every token of the traces, by the characters that it stands for."""
    # They bring torch, which a page without KL doesn't need.
    from mixprec.core.float64 import check_float64
    from mixprec.evaluate import against, passages

    check_float64(model.device, "review")
    model.check()
    encoder, limit = original.encoder, min(max_tokens or original.context, original.context)
    texts, _ = passages.from_traces(traces, encoder, limit)
    found, _ = against.per_token(model, original, texts)
    result = []
    for each, values in zip(traces, found, strict=True):
        offsets = encoder(each.trace.text).offsets[1:limit]  # nothing predicts the first token
        pairs = zip(offsets, values.kl.tolist(), strict=True)
        result.append([(start, end, value) for (start, end), value in pairs if end > start])
    return result
