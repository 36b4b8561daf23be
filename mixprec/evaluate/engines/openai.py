"""Generation by a server that speaks OpenAI's protocol: vllm serve, llama-server, a hosted model.

Raw prompts go to ``/completions``, chat prompts to ``/chat/completions``. Answers come in as they are done, so that a
server that dies costs only what it was working on.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from mixprec.errors import UserError
from mixprec.evaluate.engines.base import Finish, Generation, OnTokens, Request, Sampling, nothing

#: Answers after which the same request may succeed: busy, too early, too many, and the server's own faults.
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Server:
    """Where a server is and how patient to be. ``model`` as the server names it; ``timeout`` in seconds per answer."""

    url: str
    model: str
    key: str | None = None
    concurrency: int = 8
    timeout: float = 3600.0
    retries: int = 6
    pause: float = 1.0


class _Failed(Exception):
    """One attempt failed; ``wait`` are the seconds that the server asked for."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class OpenAIEngine:
    """Sends requests to a server, ``concurrency`` at a time; failed ones again after pauses that double, with jitter.

    A server's Retry-After goes before our own pause.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        limits = httpx2.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)
        try:
            base = httpx2.URL(server.url.rstrip("/") + "/")
        except httpx2.InvalidURL as problem:
            raise UserError(f"engine.url: {server.url!r}: no address ({problem})") from None
        if base.scheme not in ("http", "https") or not base.host:
            raise UserError(f"engine.url: {server.url!r}: no address; it reads like http://localhost:8000/v1")
        timeout = httpx2.Timeout(server.timeout, connect=min(20.0, server.timeout))
        self._client = httpx2.Client(base_url=base, headers=headers, limits=limits, timeout=timeout)

    @property
    def described(self) -> dict[str, Any]:
        # Not the address: it says nothing about the model, and may name a machine.
        return {"kind": "openai", "model": self.server.model}

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_tokens: OnTokens = nothing
    ) -> Iterator[Generation]:
        """Yield generations as answers come in; servers count tokens then, so ``on_tokens`` is never called.

        Raises UserError where a request fails for good; what is under way then is waited for and given first.
        """
        stop = threading.Event()
        waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        for request in requests:
            waiting.put(request)
        results: queue.SimpleQueue[Generation | BaseException | None] = queue.SimpleQueue()
        workers = min(self.server.concurrency, len(requests))
        for _ in range(workers):
            # Daemons: Ctrl-C need not wait for answers that take an hour.
            threading.Thread(target=self._work, args=(waiting, results, sampling, stop), daemon=True).start()
        failure: BaseException | None = None
        try:
            while workers:
                result = results.get()
                if result is None:
                    workers -= 1
                elif isinstance(result, BaseException):
                    stop.set()
                    failure = failure or result
                else:
                    yield result
        finally:
            stop.set()
        if failure is not None:
            raise failure

    def _work(
        self,
        waiting: queue.SimpleQueue[Request],
        results: queue.SimpleQueue[Generation | BaseException | None],
        sampling: Sampling,
        stop: threading.Event,
    ) -> None:
        """One worker: request after request until none is left; puts None at its end."""
        try:
            while not stop.is_set():
                results.put(self._one(waiting.get_nowait(), sampling, stop))
        except queue.Empty:
            pass
        except BaseException as problem:
            results.put(problem)
        finally:
            results.put(None)

    def _one(self, request: Request, sampling: Sampling, stop: threading.Event) -> Generation:
        jitter = random.Random(request.seed)  # those that were refused together don't come back together
        for attempt in range(self.server.retries + 1):
            try:
                return self._ask(request, sampling)
            except _Failed as problem:
                if attempt == self.server.retries or stop.is_set():
                    times = "once" if attempt == 0 else f"{attempt + 1} times"
                    raise UserError(
                        f"{self.server.url}: {problem}, {times} for {request.key!r}; see to the server and run the "
                        "same command again: what is finished is kept"
                    ) from None
                pause = min(_LONGEST_PAUSE, self.server.pause * 2**attempt * jitter.uniform(0.5, 1))
                stop.wait(pause if problem.wait is None else problem.wait)
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, request: Request, sampling: Sampling) -> Generation:
        body: dict[str, Any] = {
            "model": self.server.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # servers take 32 bits
        }
        if request.chat:
            path, body["messages"] = "chat/completions", [{"role": "user", "content": request.prompt}]
        else:
            path, body["prompt"] = "completions", request.prompt
        try:
            answer = self._client.post(path, json=body)
        except httpx2.TimeoutException:
            raise _Failed(f"no answer within {self.server.timeout:g} s") from None
        except httpx2.TransportError as problem:
            raise _Failed(f"can't be reached ({problem or type(problem).__name__})") from None
        if answer.status_code in RETRIED:
            raise _Failed(f"HTTP {answer.status_code}{_said(answer)}", _retry_after(answer))
        if answer.status_code != 200:
            raise UserError(
                f"{answer.url}: HTTP {answer.status_code}{_said(answer)} for {request.key!r}{_hint(answer)}"
            )
        return _read(answer, request)


def _read(answer: httpx2.Response, request: Request) -> Generation:
    """The generation in an answer. Raises _Failed for garbage: a proxy's page, half an answer, no text."""
    try:
        data = answer.json()
        choice = data["choices"][0]
        text = _text_of(choice["message"]) if request.chat else choice["text"]
        reason = choice.get("finish_reason")
        usage = data.get("usage") or {}
        counts = [usage.get(name) for name in ("completion_tokens", "prompt_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Failed(f"answered what is no completion ({_excerpt(answer)})") from None
    if not isinstance(text, str) or reason not in ("stop", "length", "eos", "eos_token"):
        raise _Failed(f"answered what is no completion (finish_reason {reason!r}, {_excerpt(answer)})")
    tokens, prompt_tokens = (count if isinstance(count, int) else None for count in counts)
    finish: Finish = "length" if reason == "length" else "stop"
    return Generation(request.key, text, finish, tokens, prompt_tokens, request.prompt)


def _text_of(message: dict[str, Any]) -> str:
    """A chat message's text; thinking that the server has taken out is put in front again."""
    thinking = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content") or ""
    return f"<think>\n{thinking}\n</think>\n\n{content}" if thinking else str(content)


def _retry_after(answer: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait, given as seconds or as a date; at most a minute each time."""
    value = answer.headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_PAUSE)


def _said(answer: httpx2.Response) -> str:
    text = _excerpt(answer)
    return f" ({text})" if text else ""


def _excerpt(answer: httpx2.Response) -> str:
    """The beginning of an answer, on one line."""
    return " ".join(answer.text.split())[:160]


def _hint(answer: httpx2.Response) -> str:
    hints = {401: "; set the API key", 403: "; set the API key", 404: "; check engine.url (it ends in /v1) and model"}
    return hints.get(answer.status_code, "")
