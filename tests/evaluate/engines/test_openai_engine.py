"""The HTTP engine against a server in this process that is busy, slow, broken or gone."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from answering import Answer, Fake, serving

from mixprec.core.errors import UserError
from mixprec.evaluate.engines import completion as completions
from mixprec.evaluate.engines import openai
from mixprec.evaluate.engines.base import Generation, Request, Sampling
from mixprec.evaluate.engines.openai import OpenAIEngine, Server

REQUESTS = [Request(f"q{index}", f"prompt {index}", 1000 + index) for index in range(6)]
SAMPLING = Sampling(max_new_tokens=8, temperature=0.6, top_p=0.95)


def completion(body: dict[str, Any], reason: str = "stop", **changes: Any) -> dict[str, Any]:
    text = f"echo {body['prompt']}" if "prompt" in body else None
    choice = {"text": text} if text else {"message": {"content": f"echo {body['messages'][0]['content']}"}}
    usage = {"completion_tokens": 3, "prompt_tokens": 5}
    return {"choices": [choice | {"finish_reason": reason}], "usage": usage} | changes


@pytest.fixture
def fake() -> Iterator[tuple[Fake, str]]:
    with serving() as (state, url):
        state.reply = lambda body, _: (200, completion(body), {})
        yield state, url


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


def test_a_server_that_wants_other_words_gets_them(fake: tuple[Fake, str]) -> None:
    """OpenAI's newer models: another name for the limit, no temperature and no top_p, not even their defaults."""
    state, url = fake

    def reply(body: dict[str, Any], _: int) -> Answer:
        for key, said in {
            "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "temperature": "Unsupported value: 'temperature' does not support 0.6; only the default (1) is supported.",
            "top_p": "Unsupported parameter: 'top_p' is not supported with this model.",
        }.items():
            if key in body:
                return 400, {"error": {"message": said}}, {}
        return 200, completion(body), {}

    state.reply = reply
    engine = OpenAIEngine(Server(url, "o", retries=0, concurrency=1))
    assert len(list(engine.generate(REQUESTS, Sampling(8, 1.0, 1.0)))) == 6
    assert len(state.bodies) == 9 and state.bodies[-1].keys() == {"model", "prompt", "seed", "max_completion_tokens"}
    with pytest.raises(UserError, match=r"'temperature' does not support 0\.6"):  # that would not be the same
        run(url, REQUESTS[:1])


def test_answers_that_a_filter_withholds(fake: tuple[Fake, str]) -> None:
    state, url = fake
    filtered = {"choices": [{"text": None, "finish_reason": "content_filter"}]}
    for status, answer in ((200, filtered), (400, {"error": {"code": "content_filter", "message": "no"}})):
        state.reply = lambda *_, said=(status, answer, {}): said
        engine = OpenAIEngine(Server(url, "tiny", retries=0), refusable=True)
        (made,) = engine.generate(REQUESTS[:1], SAMPLING)
        assert (made.output, made.finish) == ("", "withheld")
        with pytest.raises(UserError, match="content_filter"):
            run(url, REQUESTS[:1], retries=0)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UserError, match=r"engine\.url"):
        run(url)


# A server, or something before it, that means harm

KEY = "sk-proj/very+secret=4711-AbCdEf"
ASK = REQUESTS[:1]


def failure(url: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(url, ASK, key=KEY, **{"retries": 0} | options)
    return str(caught.value)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize(
    "echo",
    [
        f"Bearer {KEY}",
        json.dumps({"error": {"headers": {"Authorization": f"Bearer {KEY}"}}}),
        KEY.replace("/", "\\/"),
        urllib.parse.quote(KEY, safe=""),
        base64.b64encode(KEY.encode()).decode(),
        "x" * 145 + KEY,
        " " * 15_990 + KEY,
        " ".join(KEY.encode("utf-16-le").decode().split(" ")),
        json.dumps({"choices": [{"text": f"I was asked with {KEY}", "finish_reason": "stop"}]}),
        json.dumps({"choices": [{"text": "x", "finish_reason": KEY}]}),
    ],
)
def test_a_key_that_comes_back_is_not_shown(fake: tuple[Fake, str], status: int, echo: str) -> None:
    state, url = fake
    state.reply = lambda *_: (status, echo.encode(), {})
    said = failure(url)
    for start in range(len(KEY) - 8):
        assert KEY[start : start + 8] not in said
    assert url in said


@pytest.mark.parametrize("key", ["a\nb", "sk-x\n", "sk x", "sk-ü", "\x00", "sk\x7f", "sk\r\nHost: evil", " ", "\udc80"])
def test_a_key_that_no_header_takes(fake: tuple[Fake, str], key: str) -> None:
    state, url = fake
    with pytest.raises(UserError, match="environment variable") as caught:
        run(url, ASK, key=key)
    assert "sk" not in str(caught.value).replace("ask", "")
    assert not state.bodies


def test_what_an_address_hides_is_not_shown(fake: tuple[Fake, str]) -> None:
    state, url = fake
    state.reply = lambda *_: (400, {"echo": [dict(state.headers[-1]), "hunter2-hunter2"]}, {})
    with_password = url.replace("http://", "http://me:hunter2-hunter2@") + "?token=tttt"
    said = failure(with_password)
    assert "hunter2" not in said and "tttt" not in said
    assert base64.b64encode(b"me:hunter2-hunter2").decode() not in said
    assert "hunter2" not in failure("htp://me:hunter2@x/v1")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_follows_no_redirection(fake: tuple[Fake, str], status: int) -> None:
    state, url = fake
    state.reply = lambda *_: (status, b"", {"Location": f"{url}/elsewhere"})
    assert f"HTTP {status}" in failure(url)
    assert len(state.paths) == 1


def choices(**choice: Any) -> bytes:
    return json.dumps({"choices": [{"text": "a", "finish_reason": "stop"} | choice]}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'{"choices": [{"text": "a", "finish_reason": "stop", "logprobs": ' + b"[" * 3000 + b"]" * 3000 + b"}]}",
        b'{"choices": [{"text": "\\ud800", "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "a", "finish_reason": "stop", "\\udfff": 1}]}',
        b'{"choices": [{"text": "a", "finish_reason": "stop", "n": ' + b"9" * 5000 + b"}]}",
        b'{"choices": [{"text": "a", "text": "b", "finish_reason": "stop"}]}',
        b'{"choices": {"0": {"text": "a", "finish_reason": "stop"}}}',
        b'{"choices": ["a"]}',
        b'{"choices": 5}',
        b"\x00",
        b"",
        "{}".encode("utf-16"),
        choices(text=["a"]),
        choices(text=5),
        choices(text={"a": 1}),
        choices(finish_reason=["stop"]),
        choices(finish_reason={}),
        choices(finish_reason=5),
        choices(finish_reason="\x1b[31mstop"),
        json.dumps({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": [1]}).encode(),
    ],
)
def test_hostile_answers_are_errors_of_that_answer(fake: tuple[Fake, str], answer: bytes) -> None:
    state, url = fake
    state.reply = lambda body, seen: (200, answer if seen == 0 else completion(body), {})
    assert len(run(url, ASK)) == 1
    state.reply = lambda *_: (200, answer, {})
    said = failure(url)
    assert "answered what is no completion" in said
    assert len(said) < 700 and said.isprintable()


@pytest.mark.parametrize(
    "message",
    [{"content": ["a"]}, {"content": [{"type": "text", "text": "a"}]}, {"content": 5}, {"content": {"a": 1}},
     {"content": "a", "reasoning_content": ["b"]}, {"content": "a", "reasoning": {"b": 1}}, [], "a", None],
)  # fmt: skip
def test_messages_of_other_types(fake: tuple[Fake, str], message: Any) -> None:
    state, url = fake
    state.reply = lambda *_: (200, {"choices": [{"message": message, "finish_reason": "stop"}]}, {})
    with pytest.raises(UserError, match="no completion"):
        run(url, [Request("q", "p", 0, chat=True)], retries=0)


def test_a_message_without_content_is_empty(fake: tuple[Fake, str]) -> None:
    state, url = fake
    state.reply = lambda *_: (200, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, {})
    assert [each.output for each in run(url, [Request("q", "p", 0, chat=True)])] == [""]


@pytest.mark.parametrize("count", [True, -1, 10**30, 1.5, "3", None, [3], float("nan")])
def test_counts_that_are_none_are_unknown(fake: tuple[Fake, str], count: Any) -> None:
    state, url = fake
    usage = {"completion_tokens": count, "prompt_tokens": count}
    state.reply = lambda body, _: (200, completion(body, usage=usage), {})
    (made,) = run(url, ASK)
    assert (made.tokens, made.prompt_tokens) == (None, None)


def test_an_endless_answer_is_cut_off(fake: tuple[Fake, str], monkeypatch: pytest.MonkeyPatch) -> None:
    state, url = fake
    monkeypatch.setattr(openai, "_LARGEST", 2**20)
    state.reply = lambda *_: (200, b" " * 2**21, {})
    assert "answered more than 1 MiB" in failure(url)
    state.reply = lambda *_: (200, gzip.compress(b" " * 2**24), {"Content-Encoding": "gzip"})
    assert "answered more than 1 MiB" in failure(url)
    state.reply = lambda *_: (200, b"no gzip", {"Content-Encoding": "gzip"})
    assert "can't be reached" in failure(url)


def test_a_drip_is_no_answer() -> None:
    """A byte now and then keeps each read alive; the time is for the whole answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not stop.wait(0.02):
                connection.sendall(b" ")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        said = failure(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3)
    finally:
        stop.set()
        thread.join()
        listener.close()
    assert "no answer within 0.3 s" in said


@pytest.mark.parametrize("value", ["nan", "-1", "1e999", "soon", "Thu, 01 Jan 99999 00:00:00 GMT", "", "9" * 500])
def test_odd_times_to_wait(value: str) -> None:
    wait = completions.retry_after(value)
    assert wait is None or 0 <= wait <= 60
