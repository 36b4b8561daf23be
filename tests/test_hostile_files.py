"""Files whose values are of other types or shapes than ours: every verb that reads one ends with exit code 0 or 2.

A run is made once; copies of its files are changed in one place each and read again by the verbs, in this process.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny

from mixprec import cli, pipeline, recipe
from mixprec.checkpoint.formats import FORMATS
from mixprec.compress.stream import compress
from mixprec.core import artifacts, publish, seals
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan import sensitivity
from mixprec.plan.schema import ModulePlan, Plan

#: What takes the place of a value: other types, other shapes, sizes that nothing can have.
DEEP: Any = [[[[[[[[[[["x"]]]]]]]]]]]
STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 3.5, 1e300, 10**30, "", "x", "../x", "=1+1", "[/b]\x1b[31m", [], ["x"], [None], [[]], {},
    {"x": 1}, {"": None}, DEEP, 0.5, "1", [1, 2],
)  # fmt: skip

Path_ = tuple[str | int, ...]


def nodes(data: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Paths to all values; of a list's items the first two, of many like keys the first three."""
    yield path
    if isinstance(data, dict):
        for key in list(data)[: 3 if len(data) > 12 else None]:
            yield from nodes(data[key], (*path, key))
    elif isinstance(data, list):
        for index in range(min(2, len(data))):
            yield from nodes(data[index], (*path, index))


def changed(data: Any, path: Path_, value: Any) -> Any:
    """A copy with another value at ``path``."""
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = changed(data[path[0]], path[1:], value)
    return copy


def without(data: Any, path: Path_) -> Any:
    """A copy that lacks what is at ``path``."""
    copy = dict(data) if isinstance(data, dict) else list(data)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(data[path[0]], path[1:])
    return copy


class Case(NamedTuple):
    """A file within the folder, and the verbs that read it; ``lines``: it is JSON lines, of which the first changes."""

    file: str
    commands: tuple[str, ...]
    lines: bool = False


CASES = (
    Case("run/summary.json", ("report run", "tables run --table 1")),
    Case("run/ablation/ablation.json", ("report run",)),
    Case("run/importance/importance.json", (
        "report run", "rank run/importance/importance.json", "shift run/importance/importance.json again.json --out s",
        "plan r.yaml --variant least --importance run/importance/importance.json",
    )),
    Case("run/variants/uniform/benchmarks.json", (
        "tables run --table 1", "tables run --table 4 --format csv", "tables run --table 11",
        "bench llama --benchmark folio --files questions --seed 0 --max-new-tokens 4 "
        "--baseline run/variants/uniform/benchmarks.json --out b",
    )),
    Case("run/variants/uniform/plan.json", (
        "check run/variants/uniform/plan.json --runtime vllm --format dense",
        "export-plan run/variants/uniform/plan.json --to modelopt",
    )),
    Case("quality.json", ("rank run/importance/importance.json --awq quality.json",)),
    Case("scores.json", ("plan b.yaml --scores scores.json", "explain b.yaml --scores scores.json")),
    Case("packed/config.json", ("inspect packed", "diff packed packed", "convert packed --format dense --out dense")),
    Case("packed/mixprec.json", ("inspect packed", "convert packed --format dense --out dense")),
    Case("llama/config.json", ("inspect llama", "explain r.yaml")),
    Case("llama/tokenizer_config.json", ("attribute spans.jsonl --model llama --out a --resamples 0",)),
    Case("llama/generation_config.json", ("attribute spans.jsonl --model llama --out a --resamples 0",)),
    Case("sharded/model.safetensors.index.json", ("inspect sharded",)),
    Case("traces.jsonl", (
        "annotate traces.jsonl --out s.jsonl", "annotate traces.jsonl --annotator cues --out s.jsonl",
        "annotate traces.jsonl --annotator classifier --out s.jsonl",
    ), lines=True),
    Case("spans.jsonl", ("attribute spans.jsonl --model llama --out a --resamples 0",), lines=True),
    Case("questions/folio.jsonl", (
        "bench llama --benchmark folio --files questions --seed 0 --max-new-tokens 4 --out b",
    ), lines=True),
    Case("prompts.jsonl", ("trace prompts.jsonl --model llama --max-new-tokens 4 --out t.jsonl",), lines=True),
)  # fmt: skip
#: What verbs write, beside what they read.
WRITTEN = ("s", "a", "b", "dense", "s.jsonl", "t.jsonl")


_MEANS = {"all": {"mean": 0.1, "ci": [0.0, 0.2]}, "backtracking": {"mean": 0.1, "ci": None}}
ABLATION = {
    "schema_version": 1,
    "method": "rtn",
    "tokens": {"all": 9, "backtracking": 3},
    "cells": [
        {"name": name, "format": "w2g16", "kl": _MEANS, "disagreement": _MEANS, "nll_increase": _MEANS}
        for name in ("1_q", "1_k", "1_v")
    ],
    "scores": {"fisher, all": {"1_q, w2g16": 1.0, "1_k, w2g16": 2.0, "1_v, w2g16": 3.0}},
    "validity": [
        {"scorer": "fisher", "scores_of": "all", "format": "w2g16", "metric": "kl", "target": "all", "spearman": 0.5,
         "spearman_ci": [0.1, 0.7], "spearman_ci_passages": [0.1, 0.7], "kendall": 0.5, "kendall_ci": [0.1, 0.7],
         "top10_overlap": 3, "top10_overlap_of": 3, "top10_overlap_chance": 3.0, "modules": 3}
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and all that is read beside it; models lie in it, so that paths in files are its own."""
    folder = tmp_path_factory.mktemp("made")
    llama = shutil.copytree(tiny_checkpoint, folder / "llama")
    tiny.write_traces(folder / "traces.jsonl")
    (folder / "questions").mkdir()
    rows = [
        {"example_id": i, "premises": f"Apples {i}.", "conclusion": "Four.", "label": label}
        for i, label in enumerate(["True", "False"])
    ]
    (folder / "questions" / "folio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text(json.dumps({"id": "a", "dataset": "d", "prompt": "Six apples"}) + "\n")
    benchmarks = {
        "benchmarks": [{"name": "folio", "source": str(folder / "questions" / "folio.jsonl")}],
        "seeds": [0],
        "max_new_tokens": 4,
    }
    traces = str(folder / "traces.jsonl")
    path = tiny.write_recipe(
        folder / "r.yaml",
        llama,
        folder / "traces.jsonl",
        evaluate={"traces": {"source": traces}, "text": str(folder / "text.txt"), "text_tokens": 32, **benchmarks},
    )
    tiny.write_recipe(
        folder / "b.yaml",
        llama,
        folder / "traces.jsonl",
        importance=None,
        variants={"ours": {"plan": {"budget": {"effective_bits": 4, "candidates": ["w2g16", "w4g16"], "scores": "x"}}}},
    )
    pipeline.Run(recipe.load(path), path.read_text(), "r", folder / "run", None).run()
    shutil.copy(folder / "run" / "importance" / "importance.json", folder / "again.json")
    shutil.copy(next((folder / "run").rglob("spans.jsonl")), folder / "spans.jsonl")
    summary = json.loads((folder / "run" / "summary.json").read_text()) | {"pages": {"ablation": "ablation"}}
    artifacts.write_json(folder / "run" / "summary.json", seals.content(summary))  # the seal is of what it was before
    artifacts.write_json(folder / "run" / "ablation" / "ablation.json", ABLATION)
    inventory = decoder_of(load_config(str(llama)))
    addresses = [module.address for module in inventory.linears]
    report = {
        "format": "w4g16",
        "method": "awq",
        "relative_error": 0.1,
        "output_error": 0.1,
        "retries": 0,
        "scale": 1.0,
    }
    artifacts.write_json(folder / "quality.json", dict.fromkeys(addresses, report))
    sensitivity.save(
        folder / "scores.json",
        sensitivity.Sensitivity(
            model=str(llama),
            identity=Model(llama).identity,
            scorer="fisher",
            target="all",
            method="rtn",
            calibration="b" * 64,
            settings={},
            scores={address: {"w2g16": 2.0, "w4g16": 1.0} for address in addresses},
        ),
    )
    packed = "w4g16"
    plan = Plan(model=str(llama), method="rtn", modules={a: ModulePlan(format=packed) for a in addresses})  # type: ignore[arg-type]
    compress(Model(llama), plan, folder / "packed", format=FORMATS["compressed-tensors"])
    loaded = Model(llama).load()
    loaded.model.save_pretrained(folder / "sharded", max_shard_size="20KB")
    loaded.tokenizer.save_pretrained(folder / "sharded")
    return folder


def mutations(text: str, case: Case) -> list[str]:
    """The file's text with each value replaced by each strange one, and without it; unsealed, as older ones are."""
    first, newline, rest = text.partition("\n") if case.lines else (text, "", "")
    data = json.loads(first)
    data = seals.content(data) if isinstance(data, dict) else data  # the seal would be all that is looked at
    found = [json.dumps(changed(data, path, value)) for path in nodes(data) for value in STRANGE]
    found += [json.dumps(without(data, path)) for path in nodes(data) if path]
    broken = (first[: len(first) // 2], first + first, "", "\ufeff" + first, '{"a": NaN}', '{"\\ud800": 1}', "[" * 9999)
    return [each + newline + rest for each in (*found, *broken)]


def outcome(capsys: pytest.CaptureFixture[str], command: str, *codes: int) -> str | None:
    """What is wrong with how a command ended, None where nothing is; ``codes``: those that are right."""
    sys.argv = ["mixprec", *command.split()]
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException as problem:  # a traceback in the terminal
        return f"{type(problem).__name__}: {problem}"
    captured = capsys.readouterr()
    if code not in codes:
        return f"exit code {code}: {captured.err}"
    if code == 2 and "error:" not in captured.err:
        return f"no message: {captured.err}"
    return "control characters" if "\x1b" in captured.out + captured.err else None


def sweep(made: Path, case: Case, capsys: pytest.CaptureFixture[str], number: int | None) -> list[str]:
    """Run a case's verbs on ``number`` mutations (None: all); gives what went wrong."""
    path = made / case.file
    good = path.read_bytes()
    changes = mutations(good.decode(), case)
    chosen = changes if number is None else random.Random(case.file).sample(changes, min(number, len(changes)))
    wrong = []
    try:
        for text in chosen:
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
            for command in case.commands:
                problem = outcome(capsys, command, 0, 2)
                if problem is not None:
                    wrong.append(f"{command}: {problem}: {_where(good.decode(), text)}")
                for name in WRITTEN:
                    publish.remove(made / name)
    finally:
        path.write_bytes(good)
    return wrong


def _where(before: str, after: str) -> str:
    """The part of a file that was changed."""
    at = next((i for i, (a, b) in enumerate(zip(json_text(before), after, strict=False)) if a != b), 0)
    return after[max(0, at - 80) : at + 80]


def json_text(text: str) -> str:
    first, newline, rest = text.partition("\n")
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return json.dumps(json.loads(first)) + newline + rest


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [])
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file.replace("/", "-"))
def test_files_as_they_are_made_are_read(here: Path, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    for command in case.commands:
        assert outcome(capsys, command, 0) is None, command
        for name in WRITTEN:
            publish.remove(here / name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file.replace("/", "-"))
def test_a_changed_value_ends_no_verb_in_a_traceback(
    here: Path, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = sweep(here, case, capsys, 8)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file.replace("/", "-"))
def test_no_changed_value_at_all_does(here: Path, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = sweep(here, case, capsys, 400)
    assert not wrong, "\n".join(wrong)
