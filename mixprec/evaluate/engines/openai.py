"""Generation by a server that speaks OpenAI's protocol: vllm serve, llama-server, a hosted model.

Raw prompts go to ``/completions``, chat prompts to ``/chat/completions``. Answers come in as they are done, so that a
server that dies costs only what it was working on. What a server answers is checked like a stranger's file; what it
says goes into messages without the key, and no redirection takes the key to another address.

Text is sent, and the server encodes it: it puts BOS in front as its own tokenizer does, and nothing is added here. A
raw prompt for a server should not begin with BOS.
"""

from __future__ import annotations

import base64
import html
import json
import queue
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx2

from mixprec.core import escaping
from mixprec.core.arguments import check_fields
from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Generation, OnTokens, Request, Sampling, nothing
from mixprec.evaluate.engines.completion import LONGEST_PAUSE, WITHHELD, read, retry_after

#: Answers after which the same request may succeed: busy, too early, too many, and the server's own faults.
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
#: Bytes of an answer; 32,768 tokens are a hundredth of it.
_LARGEST = 64 * 2**20
#: Characters from which a key is no word that a model may write by itself.
_SECRET = 16


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

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in {"concurrency": 1, "retries": 0, "pause": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"mixprec Server: {name}: {getattr(self, name)} is less than {least}")
        if not self.timeout > 0:
            raise UserError(f"mixprec Server: timeout: {self.timeout} is not greater than 0")


class _Failed(Exception):
    """One attempt failed; ``wait`` are the seconds that the server asked for."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _Answer(NamedTuple):
    """A server's whole answer."""

    status: int
    retry_after: str | None
    body: bytes


_HINTS = {
    **dict.fromkeys((301, 302, 307, 308), "; give the address that it moved to"),
    **dict.fromkeys((401, 403), "; set the API key"),
    404: "; check {place} (it ends in /v1) and model",
}
#: OpenAI's newer models know the limit by another name, and say so when they refuse the older one.
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
#: Values that mean the same as leaving the key out, for models that refuse the key whatever its value.
_DEFAULTS = {"temperature": 1, "top_p": 1}


class OpenAIEngine:
    """Sends requests to a server, ``concurrency`` at a time; failed ones again after pauses that double, with jitter.

    A server's Retry-After goes before our own pause. ``place``: where the user gave the address. ``refusable``: what a
    server's filter withholds is an empty generation with the finish ``withheld``, and no failure. ``too_long``: what
    to do where a server refuses a request that may be too long for it.
    """

    def __init__(
        self, server: Server, *, place: str = "engine.url", refusable: bool = False, too_long: str = ""
    ) -> None:
        self.server = server
        self._refusable = refusable
        self._hints = {status: hint.format(place=place) for status, hint in _HINTS.items()}
        self._hints |= dict.fromkeys((400, 413), f"; if it is too long, {too_long}" if too_long else "")
        #: How this server wants requests, seen when it refuses one: keys by other names, None leaves them out.
        self._names: dict[str, str | None] = {}
        key = server.key or ""
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                "the API key holds a blank, a line end or a character that isn't ASCII, which no HTTP header takes; "
                "set its environment variable again"
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)
        try:
            base = httpx2.URL(server.url.rstrip("/") + "/")
        except httpx2.InvalidURL:
            base = httpx2.URL("")
        self._shown = re.sub("//[^/]*@", "//", server.url).partition("?")[0]
        if base.scheme not in ("http", "https") or not base.host:
            raise UserError(f"{place}: {self._shown!r}: no address; it reads like http://localhost:8000/v1")
        self._secrets = _spellings([key, base.password, f"{base.username}:{base.password}" if base.password else ""])
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
                        f"{self._shown}: {problem}, {times} for {request.key!r}; see to the server and run the "
                        "same command again: what is finished is kept"
                    ) from None
                pause = min(LONGEST_PAUSE, self.server.pause * 2**attempt * jitter.uniform(0.5, 1))
                stop.wait(pause if problem.wait is None else problem.wait)
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, request: Request, sampling: Sampling) -> Generation:
        body: dict[str, Any] = {
            "model": self.server.model,
            _LIMIT: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # servers take 32 bits
        }
        if request.chat:
            path, body["messages"] = "chat/completions", [dict(turn) for turn in request.turns]
            if request.template:
                body["chat_template_kwargs"] = dict(request.template)  # as vLLM, SGLang and llama-server know them
        else:
            path, body["prompt"] = "completions", request.prompt
        answer = self._post_as_wanted(path, body)
        if answer.status != 200:
            text = self._short(answer.body.decode("utf-8", "replace"))
            said = f"HTTP {answer.status} ({text})" if text else f"HTTP {answer.status}"
            if answer.status in RETRIED:
                raise _Failed(said, retry_after(answer.retry_after))
            if answer.status == 400 and self._refusable and any(word.encode() in answer.body for word in WITHHELD):
                return Generation(request.key, "", "withheld", None, None, request.prompt)
            raise UserError(f"{self._shown}/{path}: {said} for {request.key!r}{self._hints.get(answer.status, '')}")
        try:
            made = read(answer.body, request, self._refusable)
        except ValueError as problem:
            both = map(self._short, (str(problem), answer.body.decode("utf-8", "replace")))
            why = "; ".join(filter(None, both))
            raise _Failed(f"answered what is no completion ({why})") from None
        if len(self.server.key or "") >= _SECRET and any(secret in made.output for secret in self._secrets):
            raise _Failed("answered with the API key in the text")
        return made

    def _post_as_wanted(self, path: str, body: Mapping[str, Any]) -> _Answer:
        """A request, sent again in other words as long as the server refuses it for these; the meaning stays."""
        wanted = self._named(body)
        answer = self._post(path, wanted)
        while answer.status == 400:
            refusal = answer.body.decode("utf-8", "replace")
            if _NEW_LIMIT in refusal:
                self._names = {**self._names, _LIMIT: _NEW_LIMIT}
            if "unsupported" in refusal.lower():
                left_out = [key for key, value in _DEFAULTS.items() if body[key] == value and f"'{key}'" in refusal]
                self._names = {**self._names, **dict.fromkeys(left_out)}
            sent, wanted = wanted, self._named(body)
            if wanted == sent:
                break
            answer = self._post(path, wanted)
        return answer

    def _named(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request as this server wants it."""
        named = {self._names.get(key, key): value for key, value in body.items()}
        return {key: value for key, value in named.items() if key is not None}

    def _post(self, path: str, body: dict[str, Any]) -> _Answer:
        """One request. Raises _Failed where no whole answer comes, in time and of a sensible size."""
        latest = time.monotonic() + self.server.timeout
        content = bytearray()
        try:
            with self._client.stream("POST", path, json=body) as answer:
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > _LARGEST:
                        raise _Failed(f"answered more than {_LARGEST >> 20} MiB")
                    if time.monotonic() > latest:  # httpx's own timeout is between two bytes
                        raise httpx2.ReadTimeout("")
                return _Answer(answer.status_code, answer.headers.get("Retry-After"), bytes(content))
        except httpx2.TimeoutException:
            raise _Failed(f"no answer within {self.server.timeout:g} s") from None
        except httpx2.HTTPError as problem:
            why = self._short(str(problem)) or type(problem).__name__
            raise _Failed(f"can't be reached ({why})") from None

    def _short(self, text: str) -> str:
        """The beginning of what a server said, on one line, without secrets."""
        text = text.replace("\0", "")  # of UTF-16
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return escaping.one_line(text)[:160]


def _spellings(secrets: Sequence[str | None]) -> list[str]:
    """Secrets as headers, JSON, addresses and pages write them, long ones first."""
    found = set()
    for secret in filter(None, secrets):
        found |= {
            secret,
            base64.b64encode(secret.encode()).decode(),
            json.dumps(secret)[1:-1],
            secret.replace("/", "\\/"),
            urllib.parse.quote(secret, safe=""),
            html.escape(secret),
        }
    return sorted(found, key=len, reverse=True)
