"""Files of outputs from many tools: what they say is read, matched and scored, and what they don't say is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bench import FOLIO, Known, answer, run
from typer.testing import CliRunner

from mixprec import cli
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate import bench, existing, outputs
from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.outputs import Options, benchmarks_in
from mixprec.evaluate.spec import ProtocolSpec

Row = Mapping[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small FOLIO: twelve questions with the ids 100 to 111."""
    made = tmp_path_factory.mktemp("data")
    (made / "benchmarks").mkdir()
    rows = [{**row, "example_id": 100 + number} for number, row in enumerate(FOLIO)]
    write(made / "benchmarks" / "folio.jsonl", rows)
    return made


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[Question]:
    return existing.questions_of("folio", str(folder / "benchmarks" / "folio.jsonl"), None)


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(number: int) -> str:
    """Right for every third question, whatever its ``number``; the thinking says otherwise."""
    return "<think>\nPerhaps it is false, or uncertain.\n</think>\n\n**Answer:** True"


def score(
    paths: Sequence[Path],
    asked: list[Question],
    options: Options = Options(),
    keys: Mapping[str, str] | None = None,
    prompts: str | None = None,
) -> dict[str, Any]:
    files = [file for path in paths for file in outputs.read(path, keys)]
    return existing.score_files(files, {"folio": asked}, prompts, (), options)


#: How tools write the output to question ``n`` (with prompt ``p``), without thinking in a field of its own.
FORMATS: dict[str, Callable[[int, str], Row]] = {
    "id": lambda n, p: {"id": 100 + n, "output": said(n)},
    "id as text": lambda n, p: {"question_id": str(100 + n), "response": said(n), "finish_reason": "stop"},
    "id behind the benchmark": lambda n, p: {"id": f"folio/{100 + n}", "output": said(n)},
    "id behind a word": lambda n, p: {"id": f"run-2|{100 + n}", "output": said(n)},
    "index": lambda n, p: {"index": n, "completion": said(n), "truncated": False},
    "an id that counts": lambda n, p: {"id": n, "generation": said(n)},
    "a request that counts": lambda n, p: {"id": f"request-{n}", "text": said(n)},
    "prompt": lambda n, p: {"prompt": f"<|user|>{p}<|assistant|>", "text": said(n)},
    "lm-eval": lambda n, p: {
        "doc_id": n,
        "doc": {"premises": "…"},
        "arguments": {"gen_args_0": {"arg_0": p, "arg_1": {}}},
        "resps": [[said(n)]],
        "filtered_resps": ["nothing"],
    },
    "lm-eval, older": lambda n, p: {"doc_id": n, "doc": {}, "arguments": [[p, {}]], "resps": [[said(n)]]},
    "lighteval": lambda n, p: {
        "doc": {"query": p, "id": str(n), "task_name": "folio"},
        "model_response": {"text": [said(n)], "output_tokens": [[1, 2, 3]], "reasonings": [None]},
        "metric": {"em": 0.0},
    },
    "lighteval as text": lambda n, p: {
        "doc": repr({"query": p, "id": str(n)}),
        "model_response": repr({"text": [said(n)], "output_tokens": [[1]]}),
        "metric": "{}",
    },
    "lighteval, older": lambda n, p: {"full_prompt": p, "predictions": repr([said(n)]), "cont_tokens": "[[1, 2]]"},
    "OpenAI batch": lambda n, p: {
        "id": "batch_req_1",
        "custom_id": str(100 + n),
        "response": {"body": {"choices": [{"message": {"content": said(n)}, "finish_reason": "stop"}]}},
        "error": None,
    },
    "chat completions": lambda n, p: {
        "id": "chatcmpl-9",
        "index": n,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": said(n)}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 7},
    },
    "completions with the question's id": lambda n, p: {
        "id": str(100 + n),
        "choices": [{"text": said(n), "finish_reason": "stop"}],
    },
    "completions": lambda n, p: {"index": n, "choices": [{"text": said(n), "finish_reason": "length"}]},
    "conversation": lambda n, p: {
        "messages": [{"role": "user", "content": p}, {"role": "assistant", "content": said(n)}]
    },
    "vLLM": lambda n, p: {"prompt": p, "outputs": [{"text": said(n), "finish_reason": "stop", "token_ids": [1, 2]}]},
    "SGLang": lambda n, p: {"index": n, "text": said(n), "meta_info": {"finish_reason": {"type": "stop"}}},
    "llama.cpp": lambda n, p: {"prompt": p, "content": said(n), "stop_type": "eos", "tokens_predicted": 9},
    "Ollama": lambda n, p: {"index": n, "response": said(n), "done_reason": "stop", "eval_count": 9},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, asked: list[Question], tmp_path: Path) -> None:
    rows = [FORMATS[name](number, question.message) for number, question in enumerate(asked)]
    found = score([write(tmp_path / "rows.jsonl", rows)], asked)
    folio = found["benchmarks"]["folio"]
    assert folio["outcomes"] == {"correct": 4, "wrong": 8, "none": 0}
    assert folio["per_question"]["100"]["answers"] == ["True"]
    assert folio["diagnosis"]["tags"] == {"<think>": 12}
    told = found["outputs"]["benchmarks"]["folio"]
    knows = (
        "finish_reason" in json.dumps(rows)
        or "truncated" in rows[0]
        or "stop_type" in rows[0]
        or "done_reason" in rows[0]
    )
    assert told["finish_unknown"] == (0 if knows else 12)
    assert (told["missing"], told["incomplete"], told["unmatched_rows"]) == (0, 0, 0)


def test_thinking_in_a_field_of_its_own(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"id": q.id, "output": "**Answer:** True", "reasoning_content": "It is false."} for q in asked[:-1]]
    rows.append(
        {
            "id": asked[-1].id,
            "output": "",
            "reasoning_content": "Okay, so it is true, I think",
            "finish_reason": "length",
        }
    )
    folio = score([write(tmp_path / "a.jsonl", rows)], asked)["benchmarks"]["folio"]
    assert folio["diagnosis"]["thinking"] == {"closed": 11, "open": 1, "absent": 0}
    assert folio["outcomes"] == {"correct": 4, "wrong": 7, "none": 1}
    batch = [
        {"custom_id": q.id, "response": {"body": {"choices": [{"finish_reason": "length", "message": {
            "role": "assistant", "content": None, "reasoning_content": "So the answer is **True**."}}]}}}
        for q in asked
    ]  # fmt: skip
    assert score([write(tmp_path / "b.jsonl", batch)], asked)["benchmarks"]["folio"]["outcomes"]["none"] == 12


def test_messages_in_parts(asked: list[Question], tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": "It is false."}, {"type": "text", "text": "**Answer:** True"}]
    rows: list[Row] = [
        {"custom_id": q.id, "response": {"body": {"choices": [{"message": {"content": parts}}]}}} for q in asked
    ]
    # The same by OpenAI's responses.
    made = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "It is false."}]}]
    made += [{"type": "message", "content": [{"type": "output_text", "text": "**Answer:** True"}]}]
    body = {"output": made, "status": "completed", "usage": {"output_tokens": 8}}
    for number in range(6):
        rows[number] = {"custom_id": asked[number].id, "response": {"status_code": 200, "body": body}}
    rows[11] = {"custom_id": "111", "response": None, "error": {"message": "overloaded"}}
    found = score([write(tmp_path / "a.jsonl", rows)], asked)
    assert found["benchmarks"]["folio"]["diagnosis"]["thinking"]["closed"] == 11
    assert found["benchmarks"]["folio"]["outcomes"] == {"correct": 4, "wrong": 7, "none": 0}
    told = found["outputs"]
    assert (told["files"][0]["without_output"], told["benchmarks"]["folio"]["finish_unknown"]) == (1, 5)


def test_parquet(asked: list[Question], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'mixprec[parquet]'")
    arrow = pytest.importorskip("pyarrow")
    rows = [FORMATS["lighteval"](number, question.message) for number, question in enumerate(asked)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "details.parquet")
    found = score([tmp_path / "details.parquet"], asked)
    assert found["benchmarks"]["folio"]["outcomes"]["correct"] == 4
    assert found["outputs"]["benchmarks"]["folio"]["files"][0]["matched_by"] == "index and prompt"
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"broken.parquet: can't be read as parquet"):
        outputs.read(tmp_path / "broken.parquet")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'mixprec\[parquet\]'"):
        outputs.read(tmp_path / "a.parquet")


@pytest.mark.parametrize("shape", ["list", "inside", "texts by id", "objects by id"])
def test_one_json(shape: str, asked: list[Question], tmp_path: Path) -> None:
    rows = [{"id": q.id, "output": said(0)} for q in asked]
    data: Any = {
        "list": rows,
        "inside": {"model": "m", "samples": rows},
        "texts by id": {row["id"]: row["output"] for row in rows},
        "objects by id": {row["id"]: {"response": row["output"]} for row in rows},
    }[shape]
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert score([tmp_path / "a.json"], asked)["benchmarks"]["folio"]["outcomes"]["correct"] == 4


def test_the_papers_numbered_texts(asked: list[Question], tmp_path: Path) -> None:
    (tmp_path / "FOLIO").mkdir()
    for number in range(12):
        (tmp_path / "FOLIO" / f"{number}.txt").write_text(said(number))
    files = outputs.read(tmp_path)
    assert benchmarks_in(files) == ["folio"]
    found = score([tmp_path], asked)
    assert found["benchmarks"]["folio"]["outcomes"]["correct"] == 4
    assert "it must count the benchmark's rows in their order" in " ".join(existing.sentences(found["outputs"]))


def test_generations_scored_again_are_bench(folder: Path, asked: list[Question], tmp_path: Path) -> None:
    source = str(folder / "benchmarks" / "folio.jsonl")
    protocol = ProtocolSpec.model_validate({"benchmarks": [{"name": "folio", "source": source}], "seeds": [3, 5]})
    made = run(protocol, tmp_path / "out", Known(answer))
    found = score([tmp_path / "out"], asked)
    assert {key: value for key, value in found.items() if key != "outputs"} == made
    other = [bench.load_questions(protocol, None)["folio"][0].__class__(**{**vars(q), "answer": "True"}) for q in asked]
    with pytest.raises(UserError, match=r"folio.jsonl:1: made from other questions of folio"):
        score([tmp_path / "out"], other)


def test_files_are_passes_or_parts_of_one(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"id": q.id, "output": said(0)} for q in asked]
    whole = [write(tmp_path / f"{name}.jsonl", rows) for name in "abc"]
    found = score(whole, asked)
    assert found["protocol"]["seeds"] == [0, 1, 2]
    assert found["benchmarks"]["folio"]["accuracy"]["seeds"] == 3
    parts = [write(tmp_path / "d.jsonl", rows[:5]), write(tmp_path / "e.jsonl", rows[5:])]
    found = score(parts, asked)
    assert (found["protocol"]["seeds"], found["benchmarks"]["folio"]["accuracy"]["n"]) == ([0], 12)


def test_seeds_that_rows_name(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"id": q.id, "output": said(0), "seed": seed} for q in asked for seed in (7, 9)]
    found = score([write(tmp_path / "a.jsonl", rows)], asked)
    assert found["protocol"]["seeds"] == [7, 9]
    with pytest.raises(UserError, match=r"b.jsonl:25: question '100' stands in .*b.jsonl:1 too"):
        score([write(tmp_path / "b.jsonl", [*rows, rows[0]])], asked)
    with pytest.raises(UserError, match=r"c.jsonl:1: question '100' with seed 7 stands in .*a.jsonl:1 too"):
        score([tmp_path / "a.jsonl", write(tmp_path / "c.jsonl", rows)], asked)
    with pytest.raises(UserError, match=r"d.jsonl:1: has no seed, other rows have one"):
        score([tmp_path / "a.jsonl", write(tmp_path / "d.jsonl", [{"id": "100", "output": ""}])], asked)


def test_several_outputs_of_a_question(asked: list[Question], tmp_path: Path) -> None:
    together = [
        {"id": q.id, "outputs": [said(0), "**Answer:** False."], "finish_reason": ["stop", "length"]} for q in asked
    ]
    found = score([write(tmp_path / "a.jsonl", together)], asked, prompts="chat")
    assert found["benchmarks"]["folio"]["at_k"]["pass@2"]["mean"] == pytest.approx(8 / 12)
    assert found["benchmarks"]["folio"]["diagnosis"]["cut"] == 12
    apart = [{"id": q.id, "output": said(0)} for q in asked for _ in range(2)]
    path = write(tmp_path / "b.jsonl", apart)
    with pytest.raises(UserError, match=r"b.jsonl:2: question '100' stands in .*b.jsonl:1 too; .*--repeats"):
        score([path], asked)
    assert score([path], asked, Options(repeats=True))["protocol"]["seeds"] == [0, 1]
    # lm-eval writes a row for each of its filters, which is no second output.
    filters = [FORMATS["lm-eval"](n, q.message) | {"filter": name} for n, q in enumerate(asked) for name in "ab"]
    assert score([write(tmp_path / "c.jsonl", filters)], asked)["protocol"]["seeds"] == [0]


def test_what_is_missing_is_told(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"id": q.id, "output": said(0)} for q in asked]
    whole, part = (
        write(tmp_path / "a.jsonl", rows[:10]),
        write(tmp_path / "b.jsonl", [*rows[:7], {"id": "107", "output": None}]),
    )
    found = score([whole, part], asked)
    told = found["outputs"]["benchmarks"]["folio"]
    assert (told["questions"], told["missing"], told["incomplete"]) == (7, 2, 3)
    assert found["benchmarks"]["folio"]["accuracy"]["n"] == 7
    words = "\n".join(existing.sentences(found["outputs"]))
    for sentence in (
        "2 of 12 questions have no output: left out, not counted as wrong",
        "3 of 12 questions lack an output in some pass",
        "b.jsonl: rows without an output, left out: 1",
        "14 of 14 outputs don't say how they ended",
        "14 of 14 have no token count: lengths in characters",
    ):
        assert sentence in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "999"}, r"1 row of 12 match no question of folio \(matched by id\): for example '999'; .*--partial"),
        ({"finish_reason": "content_filter"}, r"a.jsonl:1: an output finished by 'content_filter'"),
        ({"tokens": "many"}, r"'many' is no number of tokens"),
        ({"seed": "one"}, r"'seed': 'one' is no integer"),
        ({"index": "x"}, r"'index': 'x' is no integer"),
        ({"output": 5}, r"key 'output' holds int, not text"),
        ({"output": {"a": 1}}, r"key 'output': an object without a text; it has a"),
    ],
)
def test_rows_that_are_refused(change: Row, words: str, asked: list[Question], tmp_path: Path) -> None:
    rows: list[Row] = [{"id": q.id, "output": said(0)} for q in asked]
    rows[0] = {**rows[0], **change}
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=words):
        score([path], asked)
    if "id" in change:
        found = score([path], asked, Options(partial=True))["outputs"]["benchmarks"]["folio"]
        assert (found["unmatched_rows"], found["missing"]) == (1, 1)


def test_another_order_is_seen_by_the_prompts(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"index": n, "prompt": q.message, "output": f"**Answer:** {q.answer}"} for n, q in enumerate(asked[::-1])]
    found = score([write(tmp_path / "a.jsonl", rows)], asked)
    assert found["outputs"]["benchmarks"]["folio"]["files"][0]["matched_by"] == "prompt"
    assert found["benchmarks"]["folio"]["outcomes"]["correct"] == 12
    rows = [{"id": q.id, "prompt": asked[n - 1].message, "output": said(n)} for n, q in enumerate(asked)]
    with pytest.raises(UserError, match=r"c.jsonl:1: is '100' by its id, but its prompt is that of '111'"):
        score([write(tmp_path / "c.jsonl", rows)], asked)
    rows = [{"index": n, "prompt": f"Of another benchmark {n}", "output": said(n)} for n in range(12)]
    path = write(tmp_path / "b.jsonl", rows)
    with pytest.raises(UserError, match=r"12 rows of 12 match no question .*their prompts hold none of its questions"):
        score([path], asked)
    assert score([path], asked, keys={"prompt": ""})["outputs"]["benchmarks"]["folio"]["questions"] == 12


def test_prompts_with_examples_in_front(asked: list[Question], tmp_path: Path) -> None:
    """Questions of the benchmark may stand there as examples: then the id decides, and the prompt alone doesn't."""
    shots = [f"{asked[n - 1].message}\nFalse\n\n{q.message}" for n, q in enumerate(asked)]
    rows = [{"id": q.id, "prompt": shot, "output": said(0)} for q, shot in zip(asked, shots, strict=True)]
    found = score([write(tmp_path / "a.jsonl", rows)], asked)
    assert found["outputs"]["benchmarks"]["folio"]["files"][0]["matched_by"] == "id and prompt"
    with pytest.raises(UserError, match="match no question"):
        score([write(tmp_path / "b.jsonl", [{"prompt": shot, "output": ""} for shot in shots])], asked)


def test_generations_and_other_outputs_are_not_mixed(folder: Path, asked: list[Question], tmp_path: Path) -> None:
    source = {"name": "folio", "source": str(folder / "benchmarks" / "folio.jsonl")}
    run(ProtocolSpec.model_validate({"benchmarks": [source], "seeds": [0]}), tmp_path / "out", Known(answer))
    other = write(tmp_path / "b.jsonl", [{"id": q.id, "output": "", "seed": 1} for q in asked])
    with pytest.raises(UserError, match=r"b.jsonl:1: is none of mixprec's generations"):
        score([tmp_path / "out", other], asked)


def test_counting_from_one_and_rows_without_names(asked: list[Question], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"index": n + 1, "output": said(n)} for n in range(12)])
    with pytest.raises(UserError, match=r"match no question .*--first-index 1"):
        score([path], asked)
    for key in ("index", "id"):  # left out alone, the last would put all others off by one
        write(path, [{key: n + 1, "output": said(n)} for n in range(12)])
        with pytest.raises(UserError, match=r"match no question .*--first-index 1"):
            score([path], asked, Options(partial=True))
        assert score([path], asked, Options(first=1))["benchmarks"]["folio"]["outcomes"]["correct"] == 4
    bare = write(tmp_path / "b.jsonl", [{"output": said(n)} for n in range(12)])
    with pytest.raises(UserError, match=r"have no id, index or prompt.*--in-order"):
        score([bare], asked)
    assert score([bare], asked, Options(in_order=True))["benchmarks"]["folio"]["outcomes"]["correct"] == 4
    with pytest.raises(UserError, match="11 rows without names, not 12"):
        score([write(tmp_path / "c.jsonl", [{"output": ""}] * 11)], asked, Options(in_order=True))


JUNK = st.sampled_from(
    [None, 5, 1.5, True, "", "x", "[1", [], [None], [[]], {}, {"text": 3}, ["a", 3], [{"role": "user"}]]
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_row_is_read_or_refused(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Values of other types are refused by name, or hold no output; nothing else is raised."""
    rows = [dict(FORMATS[name](number, "prompt")) for number in range(2)]
    for key in data.draw(st.sets(st.sampled_from(sorted(rows[1])))):
        rows[1][key] = data.draw(JUNK)
    path = write(tmp_path_factory.mktemp("junk") / "a.jsonl", rows)
    try:
        [file] = outputs.read(path)
    except UserError as problem:
        assert "a.jsonl" in str(problem)
    else:
        assert all(isinstance(each.text, str) for row in file.rows for each in row.outputs)


def test_lines_by_another_name(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"id": q.id, "output": said(0)} for q in asked]
    assert len(outputs.read(write(tmp_path / "a.json", rows))[0].rows) == 12
    (tmp_path / "b.jsonl").write_text(json.dumps(rows, indent=1))
    assert len(outputs.read(tmp_path / "b.jsonl")[0].rows) == 12
    mixed = write(tmp_path / "c.jsonl", [FORMATS["lm-eval"](0, "p"), rows[0]])
    with pytest.raises(UserError, match=r"c.jsonl:2: the first row is one of samples of lm-eval, this one isn't"):
        outputs.read(mixed)


def test_a_file_called_after_another_benchmark(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"id": q.id, "output": said(0)} for q in asked]
    path = write(tmp_path / "musique_and_more.jsonl", rows)
    assert score([path], asked)["benchmarks"]["folio"]["outcomes"]["correct"] == 4
    named = write(tmp_path / "b.jsonl", [{**row, "benchmark": "MuSiQue100"} for row in rows])
    with pytest.raises(UserError, match="no outputs to folio"):
        score([named], asked)


def test_ids_that_others_put_something_in_front_of(tmp_path: Path) -> None:
    rows = [{"ID": f"2024-II-{n}", "Problem": f"What is {n} + 1?", "Answer": n + 1} for n in (4, 12)]
    asked = existing.questions_of("aime_2024", str(write(tmp_path / "aime_2024.jsonl", rows)), None)
    given = [{"id": f"aime_2024-{row['ID']}", "output": f"\\boxed{{{row['Answer']}}}"} for row in reversed(rows)]
    files = outputs.read(write(tmp_path / "a.jsonl", given))
    found = existing.score_files(files, {"aime_2024": asked}, None, (), Options())
    assert found["benchmarks"]["aime_2024"]["accuracy"]["mean"] == 1
    assert found["outputs"]["benchmarks"]["aime_2024"]["files"][0]["matched_by"] == "end of the id"


def test_passes_that_say_the_same_are_told(asked: list[Question], tmp_path: Path) -> None:
    """A copy under another name is no second pass of the model; greedy passes may repeat each other."""
    rows = [{"id": 100 + n, "output": said(n) + " " * (n == 0)} for n in range(12)]
    other = [{"id": 100 + n, "output": said(n)} for n in range(12)]
    found = score([write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", other)], asked)
    assert found["outputs"]["benchmarks"]["folio"]["repeated"] == 11
    told = existing.sentences(found["outputs"])
    assert "folio: 11 of 12 questions have the same output in several passes" in told
    assert "folio: b.jsonl holds pass 1, matched by id" in told


def test_keys_of_ones_own(asked: list[Question], tmp_path: Path) -> None:
    rows = [{"q": {"n": q.id}, "said": {"last": said(0)}, "text": "the question", "why": "limit"} for q in asked]
    path = write(tmp_path / "a.jsonl", rows)
    keys = {"id": "q.n", "output": "said.last", "finish": "why"}
    found = score([path], asked, keys=keys)
    assert found["outputs"]["files"][0]["keys"] == keys
    assert found["benchmarks"]["folio"]["diagnosis"]["cut"] == 12
    with pytest.raises(UserError, match=r"--key answer=…: there are id, index, output"):
        outputs.read(path, {"answer": "said"})
    with pytest.raises(UserError, match=r"--key output=reply: no row has it; they have q, said, text, why"):
        outputs.read(path, {"output": "reply"})
    bad = write(tmp_path / "b.jsonl", [{"a": 1}])
    with pytest.raises(UserError, match=r"b.jsonl: no outputs found; its rows have the keys a; .*--key output=NAME"):
        outputs.read(bad)


def test_prompts_say_whether_a_thinking_was_opened(asked: list[Question], tmp_path: Path) -> None:
    """Cut in the thinking that the prompt opened there is no answer; cut in a reply, what was said before counts."""
    cut = "**Answer:** True\n\nThe first of the premises says that"
    for prompt, prompts, none in (("<think>\n", "paper", 12), ("", "chat", 0)):
        rows = [FORMATS["lm-eval"](n, q.message + prompt) | {"resps": [[cut]]} for n, q in enumerate(asked)]
        found = score([write(tmp_path / f"{prompts}.jsonl", rows)], asked)
        assert found["protocol"]["prompts"] == prompts
        assert found["benchmarks"]["folio"]["outcomes"]["none"] == none
    with pytest.raises(UserError, match="some of the prompts open a thinking"):
        score([tmp_path / "paper.jsonl", tmp_path / "chat.jsonl"], asked)


def cli_run(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["score", *words])


def test_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    rows = [{"id": str(100 + n), "output": said(n).replace("think", "plan")} for n in range(12)]
    path = write(tmp_path / "mine_folio.jsonl", rows)
    words = [str(path), "--data", str(folder), "--out", str(tmp_path / "out"), "--label", "model=Mine"]
    done = cli_run(*words, "--think-tags", "<plan>,</plan>")
    assert done.exit_code == 0, done.output
    found = artifacts.read_versioned(tmp_path / "out" / "benchmarks.json")
    assert found["labels"] == {"model": "Mine"}
    assert found["protocol"] == {
        "seeds": [0], "prompts": "paper", "limit": None, "think_tags": ["<plan>,</plan>"],
        "max_new_tokens": None, "temperature": None, "top_p": None, "template": {}, "thinking_budget": None,
    }  # fmt: skip
    assert found["benchmarks"]["folio"]["diagnosis"]["tags"] == {"<plan>": 12}
    assert str(tmp_path) not in json.dumps(found)
    tables = CliRunner().invoke(cli.app, ["tables", str(tmp_path / "out"), "--table", "10", "--format", "markdown"])
    assert tables.exit_code == 0, tables.output
    again = cli_run(*words[:3], "--baseline", str(tmp_path / "out" / "benchmarks.json"))
    assert again.exit_code == 0 and "+0.0" in again.output, again.output
    part = write(tmp_path / "part_folio.jsonl", rows[:6])
    less = cli_run(str(part), *words[1:3], "--baseline", str(tmp_path / "out" / "benchmarks.json"))
    assert "folio: not compared with the baseline, which has other questions" in " ".join(less.output.split())


def test_tokens_are_counted_by_a_tokenizer(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "folio.jsonl", [{"id": 100 + n, "output": "a b c", "tokens": 9} for n in range(6)])
    write(path, [*artifacts.read_jsonl(path), *({"id": 106 + n, "output": "a b c"} for n in range(6))])
    words = [str(path), "--data", str(folder), "--out", str(tmp_path / "out"), "--tokenizer", str(tiny_checkpoint)]
    assert cli_run(*words).exit_code == 0
    tokens = artifacts.read_versioned(tmp_path / "out" / "benchmarks.json")["benchmarks"]["folio"]["diagnosis"][
        "tokens"
    ]
    assert tokens["n"] == 12
    assert tokens["total"] > 54


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.jsonl"], "no such file or folder"),
        (["a.jsonl"], "names no benchmark; say which with --benchmark"),
        (["a.jsonl", "--benchmark", "gsm8k"], "there are aime_2024"),
        (["a.jsonl", "--benchmark", "folio", "--think-tags", "<x>"], "think_tags"),
        (["a.jsonl", "--benchmark", "folio", "--key", "output"], "write name=text"),
        (["a.jsonl", "--benchmark", "folio", "--prompts", "raw"], "prompts"),
        (["empty.jsonl", "--benchmark", "folio"], "no rows in this file"),
        (["a.jsonl", "./a.jsonl", "--benchmark", "folio"], "a.jsonl: given twice"),
        (["a.csv", "--benchmark", "folio"], "a.csv: a table; save it as JSON lines"),
        (["a.jsonl.gz", "--benchmark", "folio"], "unpack it first"),
        (["bare.jsonl", "--benchmark", "folio"], "no outputs found; its first row is empty"),
        (["a.jsonl", "--benchmark", "folio", "--benchmark", "aime_2024"], "score one at a time"),
        (["a.jsonl", "--benchmark", "folio", "--tokenizer", "none"], "--tokenizer: 'none' is no folder"),
    ],
)
def test_mistakes(
    words: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXPREC_DATA", str(folder))
    write(folder / "benchmarks" / "aime_2024.jsonl", [{"ID": "2024-I-1", "Problem": "1 + 1", "Answer": 2}])
    for name, text in (("a.csv", "id,output"), ("a.jsonl.gz", "x"), ("bare.jsonl", "{}")):
        (tmp_path / name).write_text(text)
    write(tmp_path / "a.jsonl", [{"id": "1", "output": "x"}])
    (tmp_path / "empty.jsonl").write_text("")
    done = cli_run(*words)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
