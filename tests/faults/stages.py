"""Every stage as a command on a tiny model, with what it reads."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import tiny
from answering import serving

from mixprec import pipeline, recipe
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress.stream import compress
from mixprec.models.model import Model
from mixprec.pipeline.annotating import annotate_traces
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import save_plan
from mixprec.recipe import TracesSpec
from mixprec.traces import spans

_CALIBRATION = {"samples": 4, "tokens": 24}
_EPISODE = re.compile(r'\["[a-z-]+"\] .*? \["end-section"\]')


#: Stage -> its verb and options; HOME has what it reads, in OUT it writes, SEEN are calibration's options.
_COMMANDS = {
    "trace": "trace HOME/prompts.jsonl --model HOME/llama --max-new-tokens 12 --out OUT/traces.jsonl",
    "annotate": "annotate HOME/traces.jsonl --out OUT/spans.jsonl",
    "judge": "annotate HOME/plain.jsonl --judge JUDGE --judge-model j --concurrency 1 --out OUT/spans.jsonl",
    "attribute": "attribute HOME/spans.jsonl --model HOME/llama --resamples 20 --out OUT/importance",
    "sensitivity": "sensitivity --model HOME/llama SEEN --scored 2 --format w2g16 --format w4g16 --out OUT/sensitivity",
    "exchange": "run HOME/exchange.yaml --out OUT/run",
    "compress": "compress HOME/gptq.json SEEN --out OUT/packed --format compressed-tensors",
    "dense": "compress HOME/rtn.json --out OUT/dense --format dense",
    "convert": "convert HOME/square --format gptq --out OUT/gptq",
    "gguf": "compress HOME/ggml.json --format gguf --out OUT/gguf",
    "bench": "bench HOME/llama --benchmark folio --files HOME/questions --seed 0 --seed 1 --max-new-tokens 4 "
    "--out OUT/bench",
    "tune": "tune HOME/packed --reference HOME/llama SEEN --validation 2 --epochs 2 --rate 0.01 --dtype float32 "
    "--out OUT/tuned",
    "report": "report OUT/run",
    "run": "run HOME/r.yaml --out OUT/run",
    "distill": "distill HOME/untrained --traces HOME/lessons.jsonl --validation 3 --epochs 2 --batch 2 --rate 0.01 "
    "--checks 1 --dtype float32 --out OUT/distilled",
}


class Stage(NamedTuple):
    """``command``: a verb and its options, where OUT stands for the folder that it writes in; ``start``: what lies
    there before."""

    name: str
    command: str
    start: Path | None = None

    def words(self, out: Path) -> list[str]:
        """The command for that folder."""
        return [word.replace("OUT", str(out)) for word in self.command.split()]


@contextmanager
def stages(home: Path, *names: str) -> Iterator[dict[str, Stage]]:
    """Name -> stage, those of ``names`` or all, with what they read in ``home``; a judge answers while the block lasts.

    Distillation is among them where TRL is installed.
    """
    if not (home / "made").is_file():
        _make(home)
    if (not names or "report" in names) and not (home / "run").is_dir():
        _run(home)
    with serving() as (judge, url):
        annotated = {trace["output"]: trace["annotated"] for trace in tiny.TRACES}

        def reply(body: dict[str, Any], _: int) -> tuple[int, Any, dict[str, str]]:
            asked = body["messages"][-1]["content"]
            text = next((annotated[each] for each in annotated if each.partition("\n</think>")[0] in asked), "")
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 9, "completion_tokens": 9}
            return 200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}, {}

        judge.reply = reply
        yield {stage.name: stage for stage in _listed(home, url) if not names or stage.name in names}


def _listed(home: Path, judge: str) -> list[Stage]:
    trains = importlib.util.find_spec("trl") and importlib.util.find_spec("peft")
    said = {"SEEN": f"--traces {home}/traces.jsonl --samples 4 --tokens 24", "HOME": str(home), "JUDGE": judge}
    found = []
    for name, command in _COMMANDS.items():
        for word, meaning in said.items():
            command = command.replace(word, meaning)
        if name != "distill" or trains:
            found.append(Stage(name, command, home / "run" if name == "report" else None))
    return found


def _make(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    llama = tiny.write_checkpoint(home / "llama", steps=60)
    tiny.write_checkpoint(home / "untrained")
    traces = tiny.write_traces(home / "traces.jsonl")
    tiny.write_traces(
        home / "plain.jsonl", *({k: v for k, v in row.items() if k != "annotated"} for row in tiny.TRACES)
    )
    rows = [{"id": str(n), "prompt": f"There were {n} apples.\n", "output": f"So {n} are left."} for n in range(7)]
    tiny.write_traces(home / "lessons.jsonl", *rows)
    tiny.write_traces(home / "prompts.jsonl", *({"id": row["id"], "prompt": row["prompt"]} for row in rows[:3]))
    (home / "questions").mkdir()
    questions = [
        {"example_id": n, "premises": f"Apples {n}.", "conclusion": "Four.", "label": "True"} for n in range(2)
    ]
    (home / "questions" / "folio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    model = Model(llama)
    for name, method, format in (("rtn", "rtn", "w4g16"), ("gptq", "gptq", "w4g16"), ("ggml", "ggml", "q8_0")):
        spec = PlanSpec.model_validate({"default": "keep", "rules": [{"match": "2_*", "format": format}]})
        save_plan(home / f"{name}.json", build_plan(spec, model.decoder, str(llama), method))
    square = {"default": "keep", "rules": [{"match": "*_q", "format": "w4g32"}]}  # rows that GPTQ's readers take
    for name, spec in (("packed", {"default": "w3g16"}), ("square", square)):
        packed = build_plan(PlanSpec.model_validate(spec), model.decoder, str(llama), "rtn")
        compress(model, packed, home / name, format=checkpoint_format("compressed-tensors"))
    tiny.write_recipe(home / "r.yaml", llama, traces)
    spans.save_spans(home / "spans.jsonl", annotate_traces(TracesSpec(source=str(traces)), str(traces)))
    budget = {"effective_bits": 4.0, "candidates": ["w2g16", "w4g16"]}
    exchange = {"samples": 2, "proposals": 3, "margin": 0}
    tiny.write_recipe(
        home / "exchange.yaml", llama, traces, importance=None, traces=None, evaluate=None,
        sensitivity={"scorer": "fisher", "formats": ["w2g16", "w4g16"], "samples": 2},
        variants={"ours": {"plan": {"budget": {**budget, "exchange": exchange}}}},
        compress={"method": "gptq", "calibration": {"traces": str(traces), **_CALIBRATION}},
    )  # fmt: skip
    (home / "made").touch()


def _run(home: Path) -> None:
    """A finished run without its report."""
    path = home / "r.yaml"
    pipeline.Run(recipe.load(path), path.read_text(), "r", home / "run", None).run()
    for drawn in ((home / "run").glob("*.*g"), (home / "run").glob("*.html")):
        for each in drawn:
            each.unlink()
