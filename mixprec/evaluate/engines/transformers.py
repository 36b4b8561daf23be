"""Generation with transformers: many rows at once on one key-value cache, and a new one for each that ends.

Rows are padded on the left. A row that ends leaves its place at once, so that one long generation doesn't keep fifteen
finished ones waiting: at 32,768 tokens that is the usual case. What a row draws depends on its own seed alone. Its
logits depend in their last digits on how many rows are computed together, as matrix products do: in float32 texts are
the same at any batch but for near ties, in 16 bits they can part.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mixprec.core.errors import UserError
from mixprec.evaluate.engines import cache as caches
from mixprec.evaluate.engines.base import Generation, OnTokens, Request, Sampling, nothing
from mixprec.evaluate.engines.budget import Watch
from mixprec.evaluate.engines.sampling import draw
from mixprec.evaluate.engines.templates import templated
from mixprec.evaluate.engines.watching import watching
from mixprec.models.load import LoadedModel

#: Prompt tokens (padding included) that go through the model at once; activations are freed in between.
_PREFILL = 4096


@dataclass
class _Row:
    request: Request
    prompt: str
    ids: list[int]
    limit: int
    source: random.Random
    watch: Watch | None = None
    new: list[int] = field(default_factory=list)
    #: What has to come next, whatever is drawn.
    forced: deque[int] = field(default_factory=deque)


class TransformersEngine:
    """Generates with a loaded model, ``batch`` rows at a time."""

    def __init__(self, loaded: LoadedModel, batch: int = 16) -> None:
        self.loaded = loaded
        self.batch = batch
        self.ends = frozenset(_end_tokens(loaded))

    @property
    def described(self) -> dict[str, Any]:
        dtype = str(self.loaded.model.dtype).removeprefix("torch.")
        return {"kind": "transformers", "batch": self.batch, "dtype": dtype}

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_tokens: OnTokens = nothing
    ) -> Iterator[Generation]:
        """Yield each generation when it ends.

        Raises UserError for a prompt that fills the context (before anything is generated), for a chat prompt where
        the tokenizer has no template, and where the device's memory is full.
        """
        waiting = deque(self._row(request, sampling) for request in requests)
        try:
            yield from self._run(waiting, sampling, on_tokens)
        except torch.OutOfMemoryError:
            raise UserError(
                f"the device has no memory for {self.batch} rows; set engine.batch lower and run the same command "
                "again: what is finished is kept"
            ) from None

    def _run(self, waiting: deque[_Row], sampling: Sampling, on_tokens: OnTokens) -> Iterator[Generation]:
        rows: list[_Row] = []
        cache, mask = caches.new_cache(), torch.empty(0)
        while rows or waiting:
            if waiting and len(rows) < self.batch:
                new = self._next(waiting, self.batch - len(rows))
                new_cache, new_mask, logits = self._prefill(new)
                mask = caches.join(cache, mask, new_cache, new_mask) if rows else new_mask
                cache = cache if rows else new_cache
                self._append(new, logits, sampling)
                on_tokens(len(new))
                rows += new
            else:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                self._append(rows, self._step(rows, cache, mask), sampling)
                on_tokens(len(rows))
            ended = [row for row in rows if self._ended(row)]
            yield from (self._done(row) for row in ended)
            left = [index for index, row in enumerate(rows) if not self._ended(row)]
            if ended and left:
                mask = caches.keep(cache, mask, left)
            rows = [rows[index] for index in left]

    def _next(self, waiting: deque[_Row], most: int) -> list[_Row]:
        """The rows that come next: as many as there is room for, at most _PREFILL tokens but at least one row."""
        chosen = [waiting.popleft()]
        longest = len(chosen[0].ids)
        while waiting and len(chosen) < most:
            longest = max(longest, len(waiting[0].ids))
            if longest * (len(chosen) + 1) > _PREFILL:
                break
            chosen.append(waiting.popleft())
        return chosen

    def _prefill(self, rows: list[_Row]) -> tuple[Cache, Tensor, Tensor]:
        """Put prompts through the model; gives cache, mask (B, length) and the logits (B, V) behind them."""
        longest = max(len(row.ids) for row in rows)
        device = self.loaded.model.device
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[index, longest - len(row.ids) :] = 1
        cache = caches.new_cache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return cache, mask.to(device), self._forward(ids, positions, mask, cache)

    def _step(self, rows: list[_Row], cache: Cache, mask: Tensor) -> Tensor:
        """One more token of every row: logits (B, V)."""
        ids = torch.tensor([[row.new[-1]] for row in rows])
        positions = torch.tensor([[len(row.ids) + len(row.new) - 1] for row in rows])
        return self._forward(ids, positions, mask, cache)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        device = self.loaded.model.device
        out = self.loaded.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        if not torch.isfinite(logits.amax(-1)).all():
            raise UserError("the model's logits are NaN or infinite; its weights overflow or are broken")
        return logits

    def _append(self, rows: list[_Row], logits: Tensor, sampling: Sampling) -> None:
        chosen = draw(logits, [row.source for row in rows], sampling.temperature, sampling.top_p)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.new.append(row.forced.popleft() if row.forced else token)
            if row.watch is not None and row.new[-1] not in self.ends:
                row.forced.extend(row.watch.after(row.new))

    def _ended(self, row: _Row) -> bool:
        return row.new[-1] in self.ends or len(row.new) >= row.limit

    def _done(self, row: _Row) -> Generation:
        stopped = row.new[-1] in self.ends
        new = row.new[:-1] if stopped else row.new
        # Special tokens stay: an output is read again as text, and has to hold what the model wrote.
        text = self.loaded.encoder.decode(new)
        return Generation(
            row.request.key,
            text,
            "stop" if stopped else "length",
            len(row.new),
            len(row.ids),
            row.prompt,
            row.watch is not None and row.watch.cut,
        )

    def _row(self, request: Request, sampling: Sampling) -> _Row:
        chat = request.chat
        prompt = templated(self.loaded.tokenizer, request.turns, request.template) if chat else request.prompt
        ids = self.loaded.encoder(prompt).ids
        room = self.loaded.context - len(ids)
        if not ids:
            raise UserError(f"{request.key!r}: the prompt is empty; nothing to continue")
        if room < 1:
            raise UserError(
                f"{request.key!r}: the prompt's {len(ids)} tokens fill the model's context of {self.loaded.context}; "
                "shorten it or leave it out"
            )
        limit = min(sampling.max_new_tokens, room)
        watch = watching(request, prompt, self.loaded.encoder)
        return _Row(request, prompt, ids, limit, random.Random(request.seed), watch)


def _end_tokens(loaded: LoadedModel) -> set[int]:
    """The tokens that end a generation: the model's own, and the tokenizer's.

    Raises UserError for one that the model can't write, as nothing would end then.
    """
    ends = loaded.model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    found = {token for token in (*listed, loaded.encoder.eos) if token is not None and token >= 0}  # -1: none
    loaded.encoder.check(found)
    return found
