"""The original's predictions in a file, so that variants are compared with it where it isn't at hand.

For each position the log-probabilities of the likeliest tokens and of all others together are kept. The divergence over
these is exact, and the KL of the two models with the unlikely tokens lumped together: it can only be smaller than the
KL over the whole vocabulary, by what the models disagree on within the lump.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate.passages import Passage
from mixprec.models.head import Head
from mixprec.numerics.divergence import TokenFidelity, joined, likelihood, log_probabilities

#: Tokens kept at each position: 512 bytes.
KEPT = 64


class Predictions(NamedTuple):
    """One passage of T tokens. ``ids`` (T-1, K) the likeliest next tokens, best first; ``logs`` (T-1, K) their
    log-probabilities in nats; ``rest`` (T-1,) that of all others together, -inf where all are kept.
    """

    ids: Tensor
    logs: Tensor
    rest: Tensor


class Reference(NamedTuple):
    """A file's predictions, one entry per passage, and what they were made from."""

    predictions: list[Predictions]
    vocabulary: int
    model: str


@torch.no_grad()
def save(
    path: Path, passages: Sequence[Passage], hidden: Iterable[Tensor], head: Head, model: str, kept: int = KEPT
) -> None:
    """Write the predictions of a model with final ``hidden`` states (T, hidden) of each passage; ``kept`` per position.

    Raises UserError where logits are NaN or the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    vocabulary = 0
    for index, (passage, states) in enumerate(zip(passages, hidden, strict=True)):
        parts = []
        for _, logs in log_probabilities(states[:-1], head):
            if logs.isnan().any():
                raise UserError("the model's logits are NaN; its weights overflow or are broken")
            vocabulary = logs.shape[-1]
            top = logs.topk(min(kept, vocabulary), dim=-1)
            parts.append(Predictions(top.indices.int(), top.values, _rest(logs, top.indices)))
        whole = joined(parts)
        tensors[f"{index:05d}.tokens"] = passage.tokens.int()
        for name, tensor in whole._asdict().items():
            tensors[f"{index:05d}.{name}"] = tensor
    meta = {"schema_version": artifacts.SCHEMA_VERSION, "vocabulary": vocabulary, "model": model}
    artifacts.save_tensors(path, tensors, {**meta, "passages": len(passages)})


def load(path: Path, passages: Sequence[Passage]) -> Reference:
    """Read predictions on ``passages``.

    Raises UserError where the file is none of these, is damaged, or was made on other passages.
    """
    tensors, meta = artifacts.load_tensors(path)
    if meta.get("schema_version") != artifacts.SCHEMA_VERSION or "passages" not in meta:
        raise UserError(f"{path}: no predictions of a model; make them with mixprec evaluate MODEL --save-reference")
    if meta["passages"] != len(passages):
        raise UserError(f"{path}: made on {meta['passages']} passages, these are {len(passages)}; {_REMEDY}")
    found = []
    for index, passage in enumerate(passages):
        if not torch.equal(tensors[f"{index:05d}.tokens"].long(), passage.tokens.long()):
            raise UserError(f"{path}: passage {index + 1} has other tokens than when it was made; {_REMEDY}")
        found.append(Predictions(*(tensors[f"{index:05d}.{name}"] for name in Predictions._fields)))
    return Reference(found, int(meta["vocabulary"]), str(meta["model"]))


_REMEDY = "give the same traces, text and length of passages, and a model with the same tokenizer"


@torch.no_grad()
def compare(
    passages: Sequence[Passage], hidden: Iterable[Tensor], own_head: Head, reference: Reference
) -> list[TokenFidelity]:
    """Measure a model by its hidden states and head against saved predictions; ``kl`` over kept tokens and the rest.

    Raises UserError where the vocabularies differ or logits are NaN.
    """
    results = []
    for passage, states, saved in zip(passages, hidden, reference.predictions, strict=True):
        parts = []
        for where, logs in log_probabilities(states[:-1], own_head):
            if logs.shape[-1] != reference.vocabulary:
                raise UserError(
                    f"the model predicts {logs.shape[-1]} tokens, the original {reference.vocabulary}; "
                    "they can't be compared"
                )
            here = Predictions(*(part[where].to(logs.device) for part in saved))
            parts.append(_chunk(logs, here, passage.tokens[1:][where]))
        result = joined(parts)
        if result.kl.isnan().any():
            raise UserError("the model's logits are NaN; its weights overflow or are broken")
        results.append(result)
    return results


def _chunk(own: Tensor, saved: Predictions, targets: Tensor) -> TokenFidelity:
    ids = saved.ids.long()
    found = torch.linalg.vecdot(saved.logs.exp(), saved.logs - own.gather(1, ids))
    share = saved.rest.exp()
    # Where nothing is left, the rest adds nothing: 0 log 0.
    found = found + torch.where(share > 0, share * (saved.rest - _rest(own, ids)), 0.0)
    return TokenFidelity(likelihood(own, targets), found.double().clamp(min=0), own.argmax(-1) == ids[:, 0])


def _rest(logs: Tensor, ids: Tensor) -> Tensor:
    """Log of what all tokens but ``ids`` have together; summed, not subtracted from one, to keep its digits."""
    return logs.scatter(1, ids.long(), -torch.inf).logsumexp(-1)
