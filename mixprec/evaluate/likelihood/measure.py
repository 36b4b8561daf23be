"""The log-probabilities of texts behind a prefix, and of a question's answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from mixprec.core.errors import UserError
from mixprec.evaluate.likelihood.asked import Asked
from mixprec.models.load import LoadedModel


class Measured(NamedTuple):
    """``options``: answer -> its log-probability, in nats, all ways to write it together; empty for open answers.
    ``gold``: that of the right answer; ``tokens``: of how many tokens it is, 1 for options."""

    options: dict[str, float]
    gold: float
    tokens: int

    @property
    def answer(self) -> str | None:
        """The most likely option; of equally likely ones the first."""
        return max(self.options, key=self.options.__getitem__) if self.options else None


def measure(loaded: LoadedModel, question: str, about: Asked) -> Measured:
    """A question's answers. Raises UserError as ``logprobs`` does."""
    if not about.options:
        (found,) = logprobs(loaded, question, about.prefix, [about.gold])
        return Measured({}, sum(found), len(found))
    texts = [text for ways in about.options.values() for text in ways]
    whole = dict(zip(texts, logprobs(loaded, question, about.prefix, texts), strict=True))
    options = {name: _log_sum([sum(whole[text]) for text in ways]) for name, ways in about.options.items()}
    return Measured(options, options[about.gold], 1)


@torch.inference_mode()
def logprobs(loaded: LoadedModel, question: str, prefix: str, texts: Sequence[str]) -> list[list[float]]:
    """Of each text behind ``prefix`` the log-probability of each of its tokens, in nats.

    The prefix goes through the model once. Where a tokenizer joins its end with a text's beginning, all texts begin at
    the token where the first of them parts from the prefix, so that they are compared behind the same tokens.

    Raises UserError for a prefix that fills the context, and for logits that are NaN or infinite.
    """
    alone = loaded.encoder(prefix).ids
    whole = [loaded.encoder(prefix + text).ids for text in texts]
    start = min(_shared(alone, ids) for ids in whole)
    longest = max(map(len, whole))
    if longest > loaded.context:
        raise UserError(
            f"{question!r}: prompt and answer have {longest} tokens, more than the model's context of "
            f"{loaded.context}; shorten it or leave it out"
        )
    cache = DynamicCache(config=loaded.model.config.get_text_config(decoder=True))
    first = _forward(loaded, alone[:start], cache, kept=1)
    found = []
    for ids in whole:
        own = ids[start:]
        rows = [*first]
        if len(own) > 1:
            rows += _forward(loaded, own[:-1], copy.deepcopy(cache))
        found.append([float(row[token]) for row, token in zip(rows, own, strict=True)])
    return found


def _forward(loaded: LoadedModel, ids: Sequence[int], cache: Any, kept: int = 0) -> Tensor:
    """Log-probabilities (T, V) in float64 of what follows each of ``ids`` (T,), which go into the cache; with ``kept``
    of what follows the last ones alone."""
    out = loaded.model(
        input_ids=torch.tensor([list(ids)], device=loaded.model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=kept,
    )
    logits: Tensor = out.logits[0]
    if not torch.isfinite(logits.amax(-1)).all():
        raise UserError("the model's logits are NaN or infinite; its weights overflow or are broken")
    return logits.double().log_softmax(-1).cpu()


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists begin with in common, at least one before the end of the second."""
    count = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return min(count, len(other) - 1)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if math.isfinite(top) else top
