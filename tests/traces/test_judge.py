"""A judge behind HTTP: answers of every awkward kind, servers of every awkward kind, and what is kept of a run."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from answering import Answer, Fake, serving

import mixprec as mp
from mixprec import cli, recipe
from mixprec.core import locks
from mixprec.core.errors import UserError
from mixprec.pipeline.context import Context
from mixprec.results.spans import Spans
from mixprec.traces import store
from mixprec.traces.judge import prompts
from mixprec.traces.spans import AnnotatedTrace

LABELS = {
    "need": "initializing", "are": "deduction", "Wait": "backtracking", "not sure": "uncertainty-estimation",
    "example": "example-testing", "recall": "adding-knowledge",
}  # fmt: skip
SENTENCE = re.compile(r"[^.。]+[.。]")
Judgement = Callable[[str], str]


def label(sentence: str) -> str:
    order = ("Wait", "not sure", "example", "recall", "need", "are")
    return LABELS[next((word for word in order if word in sentence), "are")]


def perfect(text: str) -> str:
    """Every sentence in a section of its own, verbatim."""
    return "\n".join(f'["{label(each)}"] {each.strip()} ["end-section"]' for each in SENTENCE.findall(text))


def asked(body: dict[str, Any]) -> str:
    """The piece of text in our prompt."""
    return str(body["messages"][0]["content"]).partition("belongs to it.\n\n")[2]


def said(text: str, reason: str = "stop", **message: Any) -> Answer:
    usage = {"completion_tokens": len(text) // 4, "prompt_tokens": 500}
    return 200, {"choices": [{"message": {"content": text, **message}, "finish_reason": reason}], "usage": usage}, {}


@pytest.fixture
def judge() -> Iterator[tuple[Fake, str]]:
    with serving() as (state, url):
        state.reply = lambda body, _: said(perfect(asked(body)))
        yield state, url


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """The tiny model's traces, without annotations."""
    rows = [{key: value for key, value in row.items() if key != "annotated"} for row in tiny.TRACES]
    return write(tmp_path / "traces.jsonl", *rows)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def trace(output: str, name: str = "a") -> dict[str, str]:
    return {"id": name, "prompt": "How many?\n<think>\n", "output": output}


def annotate(url: str, traces: Path, **settings: Any) -> Spans:
    return mp.annotate(traces, judge=mp.Judge(url, "j", **{"retries": 1, "timeout": 5.0} | settings))


def texts(each: AnnotatedTrace) -> list[tuple[str, str]]:
    return [(span.behaviour, each.trace.text[span.start : span.end]) for span in each.spans]


def truth(output: str) -> list[tuple[str, str]]:
    return [(label(each).replace("-", "_"), each.strip()) for each in SENTENCE.findall(output)]


# What a good judge gives


def test_spans_of_a_judge_are_spans(
    judge: tuple[Fake, str], traces: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = judge
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    found = annotate(url, traces)
    reasoning = [each.trace.output.partition("\n</think>")[0] for each in found]
    assert [texts(each) for each in found] == [truth(text) for text in reasoning]
    assert not any(each.skipped for each in found)
    assert {headers["Authorization"] for headers in state.headers} == {"Bearer sk-of-the-environment"}
    assert set(state.paths) == {"/v1/chat/completions"} and len(state.bodies) == 4
    assert {key: state.bodies[0][key] for key in ("model", "temperature", "max_tokens")} == {
        "model": "j", "temperature": 0.1, "max_tokens": 8192
    }  # fmt: skip
    # The file is one of spans: it says who judged, comes back as it was, and attribute takes it.
    found.save(tmp_path / "spans.jsonl")
    again = Spans.load(tmp_path / "spans.jsonl")
    assert again.traces == found.traces and "judge: j, prompt 1 (sha256 " in str(again)
    by = again.traces[0].by
    assert (by["kind"], by["model"], by["prompt"]["version"], by["pieces"], by["answers"]) == ("judge", "j", 1, 1, 1)
    assert by["tokens"] > 0 and by["prompt_tokens"] == 500 and "sk-" not in (tmp_path / "spans.jsonl").read_text()
    importance = mp.attribute(mp.Model(str(tiny_checkpoint)), again, resamples=0)
    assert set(importance.scores) == {"backtracking", "uncertainty_estimation", "example_testing", "adding_knowledge"}


def test_tags_of_the_thinking_are_in_no_span(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    output = "<think>\nWait, that is it. I am not sure.\n</think>\n\nWait, the answer is four."
    (found,) = annotate(url, write(tmp_path / "t.jsonl", trace(output)))
    assert texts(found) == [("backtracking", "Wait, that is it."), ("uncertainty_estimation", "I am not sure.")]
    assert "think>" not in asked(state.bodies[0])


def test_long_traces_go_in_overlapping_pieces(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    output = " ".join(f"There are {n} of them. Wait, that is wrong. I recall number {n}." for n in range(60))
    (found,) = annotate(url, write(tmp_path / "t.jsonl", trace(output)), piece=600)
    assert texts(found) == truth(output)
    assert len(state.bodies) == found.by["pieces"] > 5
    assert sum(len(asked(body)) for body in state.bodies) > len(output)
    assert all(len(asked(body)) <= 600 for body in state.bodies)


def test_a_trace_in_chinese(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    known = {"等一下": "backtracking", "不确定": "uncertainty-estimation", "我记得": "adding-knowledge"}
    sentences = ["等一下，这个算错了。", "我不确定答案是不是四。", "我记得三角形的内角和是一百八十度。"] * 30

    def reply(body: dict[str, Any], _: int) -> Answer:
        each = re.findall(r"[^。]+。", asked(body))
        return said("".join(f'["{next(v for k, v in known.items() if k in s)}"]{s}["end-section"]' for s in each))

    state.reply = reply
    (found,) = annotate(url, write(tmp_path / "t.jsonl", trace("".join(sentences))), piece=300)
    assert [text for _, text in texts(found)] == sentences and found.by["pieces"] > 3
    assert texts(found)[1][0] == "uncertainty_estimation"


def test_traces_without_text_or_reasoning(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    path = write(tmp_path / "t.jsonl", trace("<think>\n\n</think>\n\nFour.", "a"), trace("Wait, no.", "b"))
    found = annotate(url, path)
    assert [len(each.spans) for each in found] == [0, 1]
    assert [each.skipped for each in found] == [{"no_reasoning": 1}, {}] and len(state.bodies) == 1
    with pytest.raises(UserError, match=r"trace 1 \(a\): output is empty; leave such traces out"):
        annotate(url, write(tmp_path / "empty.jsonl", trace("")))


# Judges that don't do as they are told

OUTPUT = "There are six of them. Wait, that is too many. I am not sure of it. For example take two. I recall a pear."


@pytest.mark.parametrize(
    ("spoilt", "fault"),
    [
        (lambda text: "I'm sorry, but I can't assist with that request.", "refused"),
        (lambda text: "\n".join(perfect(text).splitlines()[:2]), "lost"),
        (lambda text: '["deduction"] Es sind sechs. ["end-section"]\n["backtracking"] Halt, zu viele! ["end-section"]',
         "not_found"),
        (lambda text: re.sub(r'\["[a-z-]+"\] ', '["pondering"] ', perfect(text)), "unknown_label"),
        (lambda text: perfect(text).replace(' ["end-section"]', "") + ' ["end-section"]' * 5, "nested"),
        (lambda text: text, "unlabelled"),
        (lambda text: "", "refused"),
    ],
    ids=["refusal", "half", "another language", "invented labels", "nested", "plain copy", "nothing"],
)  # fmt: skip
def test_what_can_t_be_used_is_asked_again(
    judge: tuple[Fake, str], tmp_path: Path, spoilt: Judgement, fault: str
) -> None:
    state, url = judge
    state.reply = lambda body, _: said((perfect if "earlier answer" in str(body) else spoilt)(asked(body)))
    (found,) = annotate(url, write(tmp_path / "t.jsonl", trace(OUTPUT)))
    assert texts(found) == truth(OUTPUT) and not found.skipped
    assert found.by["faults"] == {fault: 1} and found.by["answers"] == 2
    assert prompts.REMINDERS[fault] in state.bodies[1]["messages"][0]["content"]


def test_small_changes_are_mended_and_not_asked_again(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    state.reply = lambda body, _: said(perfect(asked(body)).replace("that is too many", "that's far too many"))
    (found,) = annotate(url, write(tmp_path / "t.jsonl", trace(OUTPUT)))
    assert texts(found) == truth(OUTPUT) and len(state.bodies) == 1
    assert found.by["mended"] == 1 and not found.by["faults"]


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_a_judge_that_breaks_off_gets_halves(judge: tuple[Fake, str], tmp_path: Path, reason: str) -> None:
    """At its limit, or because it thinks that this is enough."""
    state, url = judge
    output = " ".join(f"There are {n} of them. Wait, that is wrong. I recall number {n}." for n in range(50))

    def reply(body: dict[str, Any], _: int) -> Answer:
        text = asked(body)
        return said(perfect(text)) if len(text) < 1200 else said(perfect(text[:900]), reason)

    state.reply = reply
    (found,) = annotate(url, write(tmp_path / "t.jsonl", trace(output)))
    assert texts(found) == truth(output) and not found.skipped
    assert found.by["pieces"] > 2 and set(found.by["faults"]) == {"truncated" if reason == "length" else "lost"}


def test_what_a_judge_never_learns_is_counted(
    judge: tuple[Fake, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, url = judge

    def reply(body: dict[str, Any], _: int) -> Answer:
        if "secret" in asked(body):
            return said("As an AI, I can't read secrets.")
        return said(perfect(asked(body)).replace('["backtracking"]', '["hesitation"]'))

    state.reply = reply
    path = write(tmp_path / "t.jsonl", trace(OUTPUT, "a"), trace("It is a secret. Wait, what secret.", "b"))
    first, second = annotate(url, path)
    assert texts(first) == [each for each in truth(OUTPUT) if each[0] != "backtracking"]
    assert first.skipped == {"partial": 1, "unknown_label": 1} and first.by["faults"] == {"unknown_label": 3}
    assert (second.spans, second.skipped, second.by["faults"]) == ([], {"refused": 1}, {"refused": 3})
    told = capsys.readouterr().err
    assert "j: 6 answers, 6 of them new; with faults: refused 3, unknown_label 3" in told
    assert "a refusal: As an AI, I can't read secrets." in told
    assert not (tmp_path / "t.jsonl.answers.jsonl").exists() and (tmp_path / "t.answers.jsonl").exists()


def test_a_judge_that_refuses_everything(judge: tuple[Fake, str], traces: Path) -> None:
    state, url = judge
    state.reply = lambda *_: said("", refusal="I can't help with that.")
    with pytest.raises(UserError, match=r"no trace has a span of backtracking.*{'refused': 4}"):
        annotate(url, traces, attempts=2)
    assert len(state.bodies) == 8


@pytest.mark.parametrize("status", [200, 400])
def test_what_a_filter_withholds_is_a_refusal(judge: tuple[Fake, str], tmp_path: Path, status: int) -> None:
    state, url = judge
    error = {"error": {"code": "content_filter", "message": "The response was filtered"}}
    filtered: Answer = said("", "content_filter") if status == 200 else (400, error, {})
    state.reply = lambda body, _: filtered if "pear" in asked(body) else said(perfect(asked(body)))
    path = write(tmp_path / "t.jsonl", trace(OUTPUT, "a"), trace("Wait, no. I am not sure.", "b"))
    first, second = annotate(url, path, attempts=2)
    assert (first.spans, first.skipped) == ([], {"refused": 1}) and len(second.spans) == 2
    assert len(state.bodies) == 3


def test_a_judge_that_thinks(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    thought = '["backtracking"] There are six of them. ["end-section"] That can\'t be meant.'
    state.reply = lambda body, _: said(perfect(asked(body)), reasoning_content=thought)
    (found,) = annotate(url, write(tmp_path / "t.jsonl", trace(OUTPUT)))
    assert texts(found) == truth(OUTPUT)


# Servers that are busy, slow or gone


def test_a_rate_limit_is_waited_for(judge: tuple[Fake, str], traces: Path) -> None:
    state, url = judge
    state.reply = lambda body, seen: said(perfect(asked(body))) if seen else (429, b"slow down", {"Retry-After": "0.4"})
    start = time.monotonic()
    assert len(annotate(url, traces, concurrency=2)) == 4
    assert time.monotonic() - start > 0.75 and len(state.bodies) == 8 and state.most_at_once <= 2


def test_a_server_that_is_slow_or_down_costs_nothing_that_is_done(
    judge: tuple[Fake, str], traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, url = judge
    good = state.reply

    def slow(body: dict[str, Any], seen: int) -> Answer:
        if "example" in asked(body) and "need" not in asked(body):
            time.sleep(1)
        return good(body, seen)

    state.reply = slow
    with pytest.raises(UserError, match=r"no answer within 0.4 s.*same command again: what is finished is kept"):
        annotate(url, traces, concurrency=1, timeout=0.4, retries=0)
    assert "answers.jsonl: keeps the " in capsys.readouterr().err
    kept = len((traces.parent / "traces.answers.jsonl").read_text().splitlines())
    assert 0 < kept < 4
    with pytest.raises(UserError, match=r"can't be reached"):
        annotate("http://127.0.0.1:9/v1", traces, retries=0)
    state.bodies.clear()
    state.reply = good
    assert len(annotate(url, traces)) == 4  # another address of the same judge
    assert len(state.bodies) == 4 - kept


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "set the API key"),
        (404, r"check judge\.url \(it ends in /v1\) and model"),
        (400, "HTTP 400 .*context.*piece"),
    ],
)
def test_requests_that_a_server_refuses(judge: tuple[Fake, str], traces: Path, status: int, message: str) -> None:
    state, url = judge
    state.reply = lambda *_: (status, {"error": {"message": "exceeds the available context size"}}, {})
    with pytest.raises(UserError, match=message):
        annotate(url, traces)


# What is kept


def test_the_same_is_never_asked_twice(judge: tuple[Fake, str], traces: Path, tmp_path: Path) -> None:
    state, url = judge
    first = annotate(url, traces)
    state.reply = lambda *_: (500, b"", {})
    again = annotate(url, traces, concurrency=1, price_in=1.0)
    assert again.traces == first.traces and len(state.bodies) == 4
    state.reply = lambda body, _: said(perfect(asked(body)))
    (tmp_path / "mine.txt").write_text("Say it again. Here it is; everything belongs to it.\n\n{text}")
    mine = annotate(url, traces, prompt=str(tmp_path / "mine.txt"))  # another prompt
    assert len(state.bodies) == 8 and mine.traces[0].by["prompt"]["version"] is None
    annotate(url, traces, temperature=1.0)
    assert len(state.bodies) == 12
    assert annotate(url, traces).traces == first.traces and len(state.bodies) == 12  # all of it lies in one file


def test_ctrl_c_leaves_what_the_same_command_goes_on_from(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    path = write(tmp_path / "t.jsonl", *(trace(f"There are {n}. Wait, that is wrong.", str(n)) for n in range(8)))
    hold = {"from": 5}

    def reply(body: dict[str, Any], _: int) -> Answer:
        if len(state.bodies) > hold["from"]:
            time.sleep(20)
        return said(perfect(asked(body)))

    state.reply = reply
    command = [sys.executable, "-m", "mixprec", "annotate", str(path), "--judge", url, "--judge-model", "j"]
    command += ["--concurrency", "1", "--out", str(tmp_path / "spans.jsonl")]
    # A shell that starts tests in the background has its children ignore Ctrl-C.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heeding, **pipes) as process:
        limit = time.monotonic() + 60
        while len(state.bodies) <= hold["from"] and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in told
    answers = tmp_path / "spans.answers.jsonl"
    assert answers.read_text().count("\n") == 5 and not (tmp_path / "spans.jsonl").exists()
    hold["from"] = 10**6
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 answers, 3 of them new" in done.stderr
    unbroken = mp.annotate(path, judge=mp.Judge(url, "j"), answers=tmp_path / "other.jsonl")
    unbroken.save(tmp_path / "unbroken.jsonl")
    assert (tmp_path / "unbroken.jsonl").read_bytes() == (tmp_path / "spans.jsonl").read_bytes()


def test_progress_and_cost_are_told(judge: tuple[Fake, str], traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, url = judge
    steps: list[mp.Step] = []
    mp.annotate(traces, judge=mp.Judge(url, "j", price_in=1000, price_out=0), progress=steps.append)
    assert [(step.what, step.done, step.total) for step in steps] == [("judge", n, 4) for n in range(5)]
    assert "cost: 2.0000, of this run 2.0000" in capsys.readouterr().err
    mp.annotate(traces, judge=mp.Judge(url, "j", price_in=1000), first=2)
    assert "cost: 1.0000, of this run 0.0000" in capsys.readouterr().err


# Words


def mix(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """The exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["mixprec", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_the_prompt_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mix(monkeypatch, "annotate", "--show-prompt") == 0
    assert capsys.readouterr().out == prompts.own().template + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "http://127.0.0.1:9/v1"], "--judge-model NAME"),
        (["--judge-model", "j"], "say where it is: --judge URL"),
        (["--judge", "localhost:8000", "--judge-model", "j"], "judge.url: 'localhost:8000': no address"),
        (["--judge", "http://h/v1", "--judge-model", "j", "--annotator", "cues"], "exclude one another"),
        (["--judge", "http://h/v1", "--judge-model", "j", "--preset", "released"], "placed as they come in"),
        (["--judge", "http://h/v1", "--judge-model", "j", "--judge-prompt", "gone.txt"], "gone.txt: can't be read"),
    ],
)
def test_options_that_do_not_fit(
    traces: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mix(monkeypatch, "annotate", traces, "--out", traces.parent / "s.jsonl", *options) == 2
    assert message in capsys.readouterr().err


def test_arguments_that_do_not_fit(traces: Path) -> None:
    with pytest.raises(UserError, match=r"mixprec Judge: 2 problems\n  piece.*\n  pieces: unknown key; did you mean"):
        mp.Judge("http://h/v1", "j", piece=3, pieces=4)
    with pytest.raises(UserError, match="answers: are a judge's"):
        mp.annotate(traces, answers="a.jsonl")
    assert "sk-" not in repr(mp.Judge("http://h/v1", "j", key="sk-1"))


def test_a_recipe_with_a_judge(judge: tuple[Fake, str], traces: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    state, url = judge
    out = tmp_path / "run"

    def written(**changes: Any) -> Path:
        spec = {"source": str(traces), "judge": {"url": url, "model": "j", **changes}}
        parts = {"traces": spec, "importance": {"resamples": 0}, "variants": None, "evaluate": None}
        return tiny.write_recipe(tmp_path / "tiny.yaml", tiny_checkpoint, traces, **parts)

    def annotate_again(**changes: Any) -> None:
        """The run's first stage alone."""
        chosen = recipe.load(written(**changes))
        assert chosen.traces is not None
        Context(chosen, "", "tiny", out, None).annotate(chosen.traces, out / "spans.jsonl", "annotate")

    run = mp.run(written(), out)
    assert run.importance is not None and len(state.bodies) == 4
    spans = Spans.load(out / "spans.jsonl")
    assert [texts(each) for each in spans] == [texts(each) for each in annotate(url, traces)]
    seen = len(state.bodies)
    (out / "spans.answers.jsonl").unlink()
    annotate_again(concurrency=2, price_in=3, timeout=9)  # changes nothing that spans depend on
    assert len(state.bodies) == seen
    annotate_again(temperature=0.7)
    assert len(state.bodies) == seen + 4
    with pytest.raises(UserError, match=r"traces\.source: .*gone\.txt: can't be read"):
        mp.run(written(prompt="gone.txt"), out)


def test_bundled_traces_keep_their_answers_in_the_working_folder(
    judge: tuple[Fake, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = judge
    monkeypatch.chdir(tmp_path)
    mp.annotate("bundled:attribution", judge=mp.Judge(url, "j"), first=2)
    assert (tmp_path / "attribution.answers.jsonl").is_file()
    assert not list(store.locate("bundled:attribution").parent.glob("*.answers.jsonl"))


def test_the_same_text_is_paid_for_once(judge: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = judge
    path = write(tmp_path / "t.jsonl", trace(OUTPUT, "a"), trace(OUTPUT, "b"))
    first, second = annotate(url, path)
    assert texts(first) == texts(second) == truth(OUTPUT) and len(state.bodies) == 1
    assert (first.by["answers"], second.by["answers"], second.by["tokens"]) == (1, 0, 0)


def test_two_runs_do_not_share_a_file_of_answers(judge: tuple[Fake, str], traces: Path) -> None:
    _, url = judge
    with (
        locks.target(traces.parent / "traces.answers.jsonl"),
        pytest.raises(UserError, match=r"traces\.answers\.jsonl: process .* is at work there"),
    ):
        annotate(url, traces)
