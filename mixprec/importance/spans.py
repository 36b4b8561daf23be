"""One span behind its prefix, in any causal decoder: three ways to the same gradients, by what a model can do.

The prefix is a constant. It enters a span through what the model keeps of it for generating: keys and values, states of
convolutions and recurrences. So a span goes forward and backward behind a copy of that cache, all tokens at once
(``cached``) or, where a mixer continues from its state by single tokens only, one by one (``stepwise``). Where neither
gives the whole pass's numbers, the span is part of a pass over everything before it, whose states are detached at each
block's input (``whole``): gradients then stay inside the span as well (docs/importance.md).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mixprec.importance.outputs import SpanGradients
from mixprec.models.weights import blocks_of, body_of

Way = Literal["cached", "stepwise", "whole"]
Modules = Mapping[str, nn.Module]


class SpanForward(NamedTuple):
    """``embedded``: the leaves (1, n, hidden) that autograd starts at, whose tokens follow one another; ``hidden``
    (1, Q, hidden): what enters the head at the span's positions, so many tokens ``before`` them."""

    embedded: list[Tensor]
    hidden: Tensor
    before: int = 0

    def gradient(self, at_hidden: Tensor) -> Tensor:
        """(1, Q, hidden) gradient at the embeddings' outputs of the span, out of that at ``hidden``."""
        parts = torch.autograd.grad(self.hidden, self.embedded, at_hidden)
        return torch.cat(parts, dim=1)[:, self.before : self.before + self.hidden.shape[1]]


class Prefix:
    """What a model keeps of a trace's tokens (T,) before a span; cheapest where spans come in order of their start.

    ``theirs``: the model wants a cache of its own kind, which it makes when it is called without one.
    """

    def __init__(self, model: Any, tokens: Tensor, *, theirs: bool = False) -> None:
        self._model, self._body = model, body_of(model)
        self._tokens = tokens[None].to(model.get_input_embeddings().weight.device)
        self._text = None if theirs else model.config.get_text_config(decoder=True)
        self._known = inspect.signature(self._body.forward).parameters
        self._kept = "cache_params" if "cache_params" in self._known else "past_key_values"
        self._cache: Any = None
        self._length = -1

    def span(
        self, way: Way, start: int, end: int, found: SpanGradients | None = None, watched: Modules | None = None
    ) -> SpanForward:
        """Tokens [start, end) forward, with gradients; ``found`` takes those at the ``watched`` modules' outputs.

        May raise whatever a model raises that isn't made for the way.
        """
        if way != "whole":
            self._advance(start, afresh=way == "stepwise")
        with torch.enable_grad(), leaves(self._model) as embedded:
            if way == "whole":
                with _watching(found, watched, slice(None), before=start), _apart_from(self._model, start):
                    hidden = self._body(input_ids=self._tokens[:, :end], use_cache=False).last_hidden_state
                return SpanForward(embedded, hidden[:, start:], start)
            cache, parts = _copied(self._cache), []
            width = 1 if way == "stepwise" else end - start
            with _written_over(cache) if width == 1 else nullcontext():
                for first in range(start, end, width):
                    with _watching(found, watched, slice(first - start, first - start + width)):
                        hidden, cache = self._behind(slice(first, first + width), cache)
                    parts.append(hidden)
            return SpanForward(embedded, torch.cat(parts, dim=1))

    @torch.no_grad()
    def _advance(self, start: int, *, afresh: bool) -> None:
        """Let the cache hold the tokens before ``start``."""
        if start == self._length:
            return
        if afresh or not 0 <= self._length < start:
            self._cache, self._length = self._text and _SpanCache(config=self._text), 0
        if start > self._length:
            _, self._cache = self._behind(slice(self._length, start), self._cache)
        self._length = start

    def _behind(self, where: slice, cache: Any) -> tuple[Tensor, Any]:
        """Final hidden states of some tokens behind a cache, and the cache that holds them too."""
        positions = torch.arange(where.start, where.stop, device=self._tokens.device)[None]
        told = {self._kept: cache} | ({"position_ids": positions} if "position_ids" in self._known else {})
        made = self._body(input_ids=self._tokens[:, where], use_cache=True, **told)
        return made.last_hidden_state, made[self._kept]


class _SpanCache(DynamicCache):  # type: ignore[misc]
    """Keys, values and states whose earlier values stay what they were: autograd still needs them.

    ``lent``: where the states lie that were given out, which a single token's step writes over.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lent: set[int] = set()

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **options: Any
    ) -> Any:
        """transformers writes the new state over the old one."""
        states = self.layers[layer_idx].recurrent_states
        if states[state_idx] is not None:
            states[state_idx] = states[state_idx].clone()
        return super().update_recurrent_state(recurrent_states, layer_idx, state_idx, **options)

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **options: Any) -> Any:
        """The same for convolutions."""
        states = self.layers[layer_idx].conv_states
        if states[state_idx] is not None:
            states[state_idx] = states[state_idx].clone()
        return super().update_conv_state(conv_states, layer_idx, state_idx, **options)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """A single token's step writes into what it gets."""
        found: Tensor | None = super().get_conv_state(layer_idx, state_idx)
        if found is not None:
            found = self.layers[layer_idx].conv_states[state_idx] = found.clone()
        return found

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The same for recurrences."""
        found: Tensor | None = super().get_recurrent_state(layer_idx, state_idx)
        if found is not None:
            found = self.layers[layer_idx].recurrent_states[state_idx] = found.clone()
            self.lent.add(found.untyped_storage().data_ptr())
        return found

    def copied(self) -> _SpanCache:
        """A cache of its own that begins with these values. Keys and values are never written over."""
        other = copy.copy(self)
        other.layers, other.lent = [], set()
        for layer in self.layers:
            own = copy.copy(layer)
            for name, value in vars(layer).items():
                if isinstance(value, dict):
                    setattr(own, name, dict(value))
            other.layers.append(own)
        return other


def _copied(cache: Any) -> Any:
    return cache.copied() if isinstance(cache, _SpanCache) else copy.deepcopy(cache)


@contextmanager
def leaves(model: Any) -> Iterator[list[Tensor]]:
    """The embeddings' outputs inside the block, which autograd starts at: no parameter requires a gradient."""
    found: list[Tensor] = []

    def root(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1].clone()  # some models multiply it in place

    handle = model.get_input_embeddings().register_forward_hook(root)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _apart_from(model: Any, start: int) -> Iterator[None]:
    """Detach hidden states before ``start`` at each block's input."""

    def cut(_module: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = given[0] if given else named["hidden_states"]
        hidden = torch.cat((hidden[:, :start].detach(), hidden[:, start:]), dim=1)
        return ((hidden, *given[1:]), named) if given else (given, {**named, "hidden_states": hidden})

    handles = [block.register_forward_pre_hook(cut, with_kwargs=True) for block in blocks_of(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watching(
    found: SpanGradients | None, watched: Modules | None, where: slice, *, before: int = 0
) -> AbstractContextManager[None]:
    return nullcontext() if found is None else found.watching(watched or {}, where, before=before)


@contextmanager
def _written_over(cache: Any) -> Iterator[None]:
    """Let a single token's step write over states: what autograd needs of them is copied.

    torch then no longer looks whether something else was written over; paths.py compares the gradients.
    """
    lent = cache.lent if isinstance(cache, _SpanCache) else set()

    def keep(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if tensor.untyped_storage().data_ptr() in lent else tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield
