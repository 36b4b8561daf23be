"""The HTTP engine against a server in this process that is busy, slow, broken or gone."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mixprec.errors import UserError
from mixprec.evaluate.engines.base import Generation, Request, Sampling
from mixprec.evaluate.engines.openai import OpenAIEngine, Server

Answer = tuple[int, Any, dict[str, str]]
REQUESTS = [Request(f"q{index}", f"prompt {index}", 1000 + index) for index in range(6)]
SAMPLING = Sampling(max_new_tokens=8, temperature=0.6, top_p=0.95)


def completion(body: dict[str, Any], reason: str = "stop", **changes: Any) -> dict[str, Any]:
    text = f"echo {body['prompt']}" if "prompt" in body else None
    choice = {"text": text} if text else {"message": {"content": f"echo {body['messages'][0]['content']}"}}
    usage = {"completion_tokens": 3, "prompt_tokens": 5}
    return {"choices": [choice | {"finish_reason": reason}], "usage": usage} | changes


class Fake:
    """A server whose answers ``reply(body, number of times this body was seen)`` gives."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any], int], Answer] = lambda body, _: (200, completion(body), {})
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()


@pytest.fixture
def fake() -> Iterator[tuple[Fake, str]]:
    state = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                seen = sum(body == each for each in state.bodies)
                state.bodies.append(body)
                state.paths.append(self.path)
                state.headers.append(dict(self.headers))
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            status, answer, headers = state.reply(body, seen)
            with state.lock:
                state.at_once -= 1
            if status == 0:  # hang up
                self.close_connection = True
                return
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def run(url: str, requests: list[Request] = REQUESTS, **options: Any) -> list[Generation]:
    server = Server(url, "tiny", **{"pause": 0.01, "retries": 2, "concurrency": 3} | options)
    return list(OpenAIEngine(server).generate(requests, SAMPLING))


def test_answers_and_what_was_asked(fake: tuple[Fake, str]) -> None:
    state, url = fake
    state.reply = lambda body, _: (time.sleep(0.05), (200, completion(body), {}))[1]
    made = run(url, key="secret")
    assert sorted(made) == [Generation(r.key, f"echo {r.prompt}", "stop", 3, 5, r.prompt) for r in REQUESTS]
    assert Counter(state.paths) == {"/v1/completions": 6}
    assert state.most_at_once == 3
    assert all(headers["Authorization"] == "Bearer secret" for headers in state.headers)
    body = next(body for body in state.bodies if body["prompt"] == "prompt 2")
    assert body == {
        "model": "tiny", "prompt": "prompt 2", "max_tokens": 8, "temperature": 0.6, "top_p": 0.95, "seed": 1002
    }  # fmt: skip


def test_chat_and_thinking_that_the_server_took_out(fake: tuple[Fake, str]) -> None:
    state, url = fake
    message = {"reasoning_content": "Hm.", "content": "\\boxed{4}"}
    state.reply = lambda *_: (200, {"choices": [{"message": message, "finish_reason": "length"}]}, {})
    (made,) = run(url, [Request("q", "2 + 2?", 0, chat=True)])
    assert made == Generation("q", "<think>\nHm.\n</think>\n\n\\boxed{4}", "length", None, None, "2 + 2?")
    assert state.paths == ["/v1/chat/completions"]
    assert state.bodies[0]["messages"] == [{"role": "user", "content": "2 + 2?"}]


def test_an_empty_output_is_an_output(fake: tuple[Fake, str]) -> None:
    state, url = fake
    state.reply = lambda *_: (200, {"choices": [{"text": "", "finish_reason": "stop"}]}, {})
    assert [each.output for each in run(url, REQUESTS[:1])] == [""]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_busy_and_broken_servers_are_asked_again(fake: tuple[Fake, str], status: int) -> None:
    state, url = fake
    state.reply = lambda body, seen: (200, completion(body), {}) if seen == 2 else (status, b"busy", {})
    assert len(run(url)) == 6
    assert len(state.bodies) == 18


def test_retry_after_goes_before_our_own_pause(fake: tuple[Fake, str]) -> None:
    state, url = fake
    state.reply = lambda body, seen: (200, completion(body), {}) if seen else (429, b"", {"Retry-After": "0.3"})
    start = time.monotonic()
    run(url, REQUESTS[:1], pause=30)
    assert 0.25 < time.monotonic() - start < 10


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>502</html>",
        b'{"choices": [',
        b'{"choices": []}',
        b'{"error": "no"}',
        b"[]",
        b"null",
        b'{"choices": [{"text": null, "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "half", "finish_reason": null}]}',
        b'{"choices": [{"text": "a", "finish_reason": "content_filter"}]}',
        b"\xff\xfe",
    ],
)
def test_garbage_is_asked_again_and_then_told(fake: tuple[Fake, str], garbage: bytes) -> None:
    state, url = fake
    state.reply = lambda body, seen: (200, garbage if seen == 0 else completion(body), {})
    assert len(run(url, REQUESTS[:2])) == 2
    state.reply = lambda *_: (200, garbage, {})
    with pytest.raises(UserError, match=r"answered what is no completion .* 3 times for 'q0'; .* kept"):
        run(url, REQUESTS[:1])


def test_hang_ups_and_timeouts(fake: tuple[Fake, str]) -> None:
    state, url = fake
    state.reply = lambda body, seen: (200, completion(body), {}) if seen else (0, b"", {})
    assert len(run(url)) == 6
    state.reply = lambda body, seen: (time.sleep(0 if seen > 6 else 1), (200, completion(body), {}))[1]
    with pytest.raises(UserError, match=r"no answer within 0.2 s, 2 times for 'slow'"):
        run(url, [Request("slow", "slow", 1)], timeout=0.2, retries=1)


def test_a_dead_server_is_told_once_and_costs_only_what_is_under_way(fake: tuple[Fake, str]) -> None:
    state, url = fake
    state.reply = lambda body, _: (200, completion(body), {}) if body["seed"] < 1003 else (503, b"gone", {})
    engine = OpenAIEngine(Server(url, "tiny", pause=0.01, retries=1, concurrency=2))
    made = []
    with pytest.raises(UserError, match=r"HTTP 503 \(gone\).*same command again"):
        for each in engine.generate(REQUESTS, SAMPLING):
            made.append(each.key)
    assert sorted(made) == ["q0", "q1", "q2"]
    with pytest.raises(UserError, match=r"can't be reached .* 2 times"):
        run("http://127.0.0.1:9/v1", retries=1)


@pytest.mark.parametrize(("status", "hint"), [(401, "set the API key"), (404, "check engine.url"), (400, "HTTP 400")])
def test_refusals_are_not_asked_again(fake: tuple[Fake, str], status: int, hint: str) -> None:
    state, url = fake
    state.reply = lambda *_: (status, {"error": {"message": "no such model"}}, {})
    with pytest.raises(UserError, match=f"HTTP {status} .*no such model.*{hint if status != 400 else ''}"):
        run(url, REQUESTS[:1])
    assert len(state.bodies) == 1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UserError, match=r"engine\.url"):
        run(url)
