"""Attribution against a plain forward pass and against the released algorithm, in one run.

python benchmarks/attribution.py [--quick] [--data FOLDER] [--work FOLDER] --json OUT

SmolLM2-135M in float32 on traces of the paper, spread over its four benchmarks and over lengths, cut at the model's
context. Times are CPU seconds of one thread, so that other processes don't count; only scaling_2proc is wall time and
wants an idle machine. Attribution is what ``mixprec attribute`` does with a trace: tokens, both passes, the file of
statistics; scores once at the end. Intervals are apart. What is measured lies in the work folder, trace by trace and
part by part, so that a run that was stopped goes on.

Keys of OUT (null: not measured)
    time_vs_forward           whole attribution (preset paper, four behaviours) over ``model(input_ids)`` without
                              gradients on the same traces in the same dtype, logits of all tokens included
    time_vs_body              the same over the decoder alone, without any logits
    speedup_vs_released       the released algorithm over ours, both with preset released and released spans: per
                              span a full forward and backward pass over the prefix with all parameters' gradients,
                              per trace a forward pass. Measured on a sample of spans at equal distances in the order
                              of prefix lengths, up to 4,096 tokens; the rest by a fit in tokens and their square
    max_rel_error             largest difference to full backpropagation on real spans, over the largest gradient of
                              that module and span
    peak_over_weights_and_kv  (peak resident memory - resident memory after imports) / (bytes of weights + of the
                              KV cache) of the whole attribute stage on one trace of memory_tokens tokens, the one
                              with the most span positions, in a process of its own
    peak_full_backward        the same for one full backward pass over that trace
    memory_tokens             tokens of that trace
    scaling_2proc             one process pinned to one core over two processes on two cores, one thread each: wall
                              time of the command without what the same command takes when all traces are done
                              already (start, loading the model, scores)
    scaling_2proc_whole       the same with start and loading in it
    traces                    traces measured
    cut_tokens                longer traces were cut here
    tokens                    their tokens
    spans                     spans of the four behaviours, preset paper
    span_token_share          their tokens over all tokens; a token in two spans counts twice
    seconds_forward           plain forward passes
    seconds_ours_paper        attribution with preset paper, of it:
    seconds_prefill           the pass without gradients
    seconds_spans             spans forward and backward
    seconds_files             statistics on disk
    seconds_scores            steering vectors and scores
    seconds_intervals         1,000 bootstrap resamples, not in the above
    seconds_ours_released     attribution with preset released
    seconds_released_extrapolated  the released algorithm, all spans
    released_spans_measured   spans in its sample
    released_spans            spans in all
    released_spans_beyond_sample   of them with a prefix longer than the sample's longest
    released_fit_error        largest relative error of the fit on the sample
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import released_algorithm

ROOT = Path(__file__).resolve().parents[1]
#: What is timed of a trace.
PASSES = ("forward", "body", "released", "paper", "prefill", "spans", "files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 traces up to 2,048 tokens instead of 24 up to 8,192")
    parser.add_argument("--data", default=os.environ.get("MIXPREC_DATA") or str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--most", type=int, help="cut traces at so many tokens")
    parser.add_argument("--only", choices=["time", "memory", "scaling"], help="leave the other figures out")
    parser.add_argument("--work", default="runs/benchmark_attribution", help="what is measured already, kept")
    parser.add_argument("--json", required=True, help="where the figures go")
    parser.add_argument("--memory", nargs=2, metavar=("HOW", "TRACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(measure_memory(arguments)))
        return
    figures: dict[str, Any] = {}
    parts = {"time": measure_time, "memory": measure_both_memories, "scaling": measure_scaling}
    for name, measure in parts.items():
        if arguments.only in (None, name):
            figures |= measure(arguments) if name == "time" else once(arguments, name, lambda m=measure: m(arguments))
    machine.write(arguments.json, __file__, figures)


def work(arguments: argparse.Namespace) -> Path:
    """Where outcomes of a run with the same cut lie."""
    return Path(arguments.work) / f"{'quick' if arguments.quick else 'full'}_{limit(arguments)}"


def once(arguments: argparse.Namespace, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The outcome of a part, measured unless an earlier run did."""
    path = work(arguments) / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def limit(arguments: argparse.Namespace) -> int:
    return int(arguments.most or (2_048 if arguments.quick else 8_192))


def chosen_traces(arguments: argparse.Namespace, per_dataset: int) -> list[Any]:
    """Traces at equal distances in the order of their lengths, of each benchmark."""
    from mixprec.traces import store

    by_dataset: dict[str, list[Any]] = {}
    for trace in store.load(str(Path(arguments.data) / "r1_distill_llama_8b_awq_traces" / "traces.jsonl")):
        by_dataset.setdefault(trace.dataset, []).append(trace)
    chosen = []
    for traces in by_dataset.values():
        ordered = sorted(traces, key=lambda trace: len(trace.text))
        chosen += [ordered[(2 * i + 1) * len(ordered) // (2 * per_dataset)] for i in range(per_dataset)]
    return chosen


def task(loaded: Any, trace: Any, preset: Any, most: int, path: Path) -> Any:
    """One trace's pass: tokens and windows, by the span rule of the preset's name."""
    from mixprec.importance import passes
    from mixprec.importance.options import AttributionOptions
    from mixprec.traces import spans

    annotated = spans.char_spans(trace, preset)
    (made,), _ = passes.plan(loaded, [annotated], [(path,)], {preset: AttributionOptions.of(preset)}, most, "benchmark")
    return made


def attribute(loaded: Any, trace: Any, preset: Any, most: int, path: Path) -> None:
    """What mixprec attribute does with one trace."""
    from mixprec.importance import passes
    from mixprec.importance.engine import Layout
    from mixprec.importance.options import AttributionOptions

    options = {preset: AttributionOptions.of(preset)}
    made = task(loaded, trace, preset, most, path)
    passes.run(loaded, [Layout.of_linears(loaded.linears)], options, [made])


def measure_time(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mixprec.core import progress
    from mixprec.models.locate import BUNDLED
    from mixprec.models.model import Model

    progress.console.quiet = True
    torch.set_num_threads(1)
    loaded, most = Model(BUNDLED).load(), limit(arguments)
    traces = chosen_traces(arguments, 2 if arguments.quick else 6)
    paths = {p: [work(arguments) / p / f"{i}.safetensors" for i in range(len(traces))] for p in ("paper", "released")}
    tasks = {p: [task(loaded, t, p, most, path) for t, path in zip(traces, paths[p], strict=True)] for p in paths}
    totals = time_traces(arguments, loaded, traces, tasks, paths)
    totals |= once(arguments, "scores", lambda: reduction_seconds(loaded, paths["paper"]))
    windows = [(each.ids, window) for each in tasks["released"] for window in each.works["released"].windows]
    samples = 8 if arguments.quick else 14
    reference = once(
        arguments, "released", lambda: released_algorithm.seconds(loaded, windows, totals["forward"], samples)
    )
    error = once(
        arguments,
        "error",
        lambda: {"max_rel_error": max_relative_error(loaded, tasks["paper"], 3 if arguments.quick else 6)},
    )
    spans = [window for each in tasks["paper"] for window in each.works["paper"].windows]
    tokens = sum(len(each.ids) for each in tasks["paper"])
    paper = totals["paper"] + totals["scores"]
    return {
        "time_vs_forward": paper / totals["forward"],
        "time_vs_body": paper / totals["body"],
        "speedup_vs_released": reference["seconds_released_extrapolated"] / (totals["released"] + totals["scores"]),
        **error,
        "traces": len(traces),
        "cut_tokens": most,
        "tokens": tokens,
        "spans": len(spans),
        "span_token_share": sum(window.end - window.start for window in spans) / tokens,
        "seconds_forward": totals["forward"],
        "seconds_ours_paper": paper,
        **{f"seconds_{phase}": totals[phase] for phase in ("prefill", "spans", "files", "scores", "intervals")},
        "seconds_ours_released": totals["released"] + totals["scores"],
        **reference,
    }


def time_traces(
    arguments: argparse.Namespace, loaded: Any, traces: list[Any], tasks: dict[str, Any], paths: dict[str, Any]
) -> dict[str, float]:
    """CPU seconds of all traces together, by what is done with them."""
    import torch

    from mixprec.importance import engine, statistics

    most, clock, totals = limit(arguments), machine.Clock(), dict.fromkeys(PASSES, 0.0)
    attribute(loaded, traces[-1], "paper", most, work(arguments) / "warm.safetensors")
    for holder, function, phase in (
        (engine, "_prefill", "prefill"),
        (engine, "_batch_gradients", "spans"),
        (statistics.TraceFile, "add", "files"),
        (statistics.TraceFile, "finish", "files"),
    ):
        clock.watch(holder, function, phase)

    def measure(i: int) -> dict[str, Any]:
        ids, found = tasks["paper"][i].ids[None], {}
        with torch.no_grad():
            found["forward"] = machine.timed(lambda: loaded.model(ids, use_cache=False))
            found["body"] = machine.timed(lambda: loaded.model.model(ids, use_cache=False))
        for preset in ("released", "paper"):  # what the phases count is of the last
            clock.seconds.clear()
            found[preset] = machine.timed(lambda p=preset: attribute(loaded, traces[i], p, most, paths[p][i]))
        return found | clock.seconds

    for i, trace in enumerate(traces):
        for phase, seconds in once(arguments, f"trace{i:02d}", lambda i=i: measure(i)).items():
            totals[phase] += seconds
        if not paths["paper"][i].is_file():  # scores need it
            attribute(loaded, trace, "paper", most, paths["paper"][i])
        print(f"{i + 1}/{len(traces)} {trace.id}: {len(tasks['paper'][i].ids)} tokens, {totals}", file=sys.stderr)
    return totals


def reduction_seconds(loaded: Any, paths: list[Path]) -> dict[str, float]:
    """Scores and intervals from the traces' statistics."""
    from mixprec.importance import bootstrap, scores
    from mixprec.importance.engine import Layout
    from mixprec.importance.options import RESAMPLES, AttributionOptions

    slices, options = Layout.of_linears(loaded.linears).slices, AttributionOptions.of("paper")
    found: list[Any] = []
    seconds = machine.timed(lambda: found.append(scores.score(paths, "paper", slices, options)[0].importance))
    intervals = machine.timed(lambda: bootstrap.intervals(paths, "paper", slices, options, found[0], RESAMPLES))
    return {"scores": seconds, "intervals": intervals}


class InMemory:
    """Gradients of all windows (W, D)."""

    def __init__(self, layout: Any, windows: int) -> None:
        import torch

        self._layout = layout
        self.rows = torch.zeros(windows, layout.size)

    def add(self, windows: Any, found: Any) -> None:
        for name, gradients in found.items():
            self.rows[windows, self._layout.slices[name]] += gradients


def max_relative_error(loaded: Any, tasks: list[Any], samples: int) -> float:
    """Against full backpropagation (frozen parameters), module by module, over spans of several traces."""
    import torch
    import torch.nn.functional as F

    from mixprec.importance.engine import Job, Layout, run_trace

    layout, worst = Layout.of_linears(loaded.linears), 0.0
    usable = [each for each in tasks if each.works["paper"].windows and len(each.ids) <= 2_048]
    for each in usable[:samples]:
        windows, ids = each.works["paper"].windows, each.ids
        found = InMemory(layout, len(windows))
        run_trace(loaded.model, layout, Job(ids, torch.ones(1, len(ids)), windows), found)
        number = len(windows) // 2
        window, outputs = windows[number], {}

        def keep(name: str, output: Any, outputs: dict[str, Any] = outputs) -> None:
            output.retain_grad()
            outputs[name] = output

        handles = [
            module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
            for name, module in layout.modules.items()
        ]
        embedded = loaded.model.get_input_embeddings()(ids[None, : window.end]).requires_grad_()
        scores = loaded.model(inputs_embeds=embedded, use_cache=False).logits[0]
        for handle in handles:
            handle.remove()
        first = max(window.start, 1)
        F.cross_entropy(scores[first - 1 : window.end - 1], ids[first : window.end]).backward()
        for name, where in layout.slices.items():
            reference = outputs[name].grad[0, window.start : window.end].mean(0)
            difference = (found.rows[number, where] - reference).abs().max() / reference.abs().max()
            worst = max(worst, float(torch.nan_to_num(difference, nan=torch.inf)))
    return worst


def measure_both_memories(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each in a process of its own, on the trace with the most span positions among the long ones."""
    from mixprec.models.locate import BUNDLED
    from mixprec.models.model import Model

    loaded, tokens = Model(BUNDLED).load(), memory_tokens(arguments)
    tasks = [(trace, task(loaded, trace, "paper", tokens, Path("none"))) for trace in chosen_traces(arguments, 6)]
    long = [(trace, each) for trace, each in tasks if len(each.ids) == tokens]
    trace, _ = max(long, key=lambda pair: sum(window.compute for window in pair[1].works["paper"].windows))
    found: dict[str, Any] = {}
    for key, which in (("peak_over_weights_and_kv", "ours"), ("peak_full_backward", "full")):
        command = [sys.executable, __file__, "--json", os.devnull, "--data", arguments.data, "--memory", which]
        command.append(trace.id)
        done = subprocess.run(
            command + ["--quick"] * arguments.quick, capture_output=True, text=True, check=False, env=one_thread()
        )
        if done.returncode:
            print(f"{key}: not measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        result = {} if done.returncode else json.loads(done.stdout.splitlines()[-1])
        found |= {key: result.get("ratio"), "memory_tokens": result.get("tokens", found.get("memory_tokens"))}
    return found


def memory_tokens(arguments: argparse.Namespace) -> int:
    return 2_048 if arguments.quick else 8_000


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    import psutil
    import torch

    from mixprec.core import progress
    from mixprec.importance import attribute as stage
    from mixprec.models.locate import BUNDLED
    from mixprec.models.model import Model
    from mixprec.traces import spans

    progress.console.quiet = True
    torch.set_num_threads(1)
    (how, wanted), tokens = arguments.memory, memory_tokens(arguments)
    trace = next(each for each in chosen_traces(arguments, 6) if each.id == wanted)
    after_imports = psutil.Process().memory_info().rss
    with machine.Peak() as peak, tempfile.TemporaryDirectory() as folder:
        loaded = Model(BUNDLED).load()
        if how == "ours":
            annotated = [spans.char_spans(trace, "paper")]
            stage.attribute(
                loaded, annotated, Path(folder), presets=("paper",), identity="benchmark", max_tokens=tokens
            )
        else:
            made = task(loaded, trace, "paper", tokens, Path(folder) / "x")
            last = made.works["paper"].windows[-1]._replace(end=tokens)
            released_algorithm.span(released_algorithm.with_gradients(loaded), made.ids, last)
    config = loaded.model.config
    weights = sum(p.nbytes for p in loaded.model.parameters())
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * 4
    return {"ratio": (peak.bytes - after_imports) / (weights + cache), "tokens": tokens}


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def measure_scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    from mixprec.traces import spans

    nothing = {"scaling_2proc": None, "scaling_2proc_whole": None}
    if not shutil.which("taskset") or len(os.sched_getaffinity(0)) < 2:
        print("scaling_2proc: not measured: needs taskset and two cores", file=sys.stderr)
        return nothing
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    commands = {"one": ["taskset", "-c", "0", sys.executable], "two": [sys.executable, *launcher]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = chosen_traces(arguments, 2 if arguments.quick else 6)
        spans.save_spans(folder / "spans.jsonl", [spans.char_spans(trace, "paper") for trace in chosen])
        walls: dict[str, float] = {}
        for how, command in commands.items():
            for when in ("all", "done"):
                verb = ["-m", "mixprec", "attribute", str(folder / "spans.jsonl"), "--out", str(folder / how)]
                start = time.monotonic()
                done = subprocess.run(
                    [*command, *verb, "--max-tokens", str(limit(arguments)), "--resamples", "0"],
                    capture_output=True,
                    text=True,
                    check=False,
                    env=one_thread(),
                )
                if done.returncode:
                    print(f"scaling_2proc: not measured: {done.stderr.strip().splitlines()[-3:]}", file=sys.stderr)
                    return nothing
                walls[f"{how} {when}"] = time.monotonic() - start
    print(f"wall seconds: {walls}", file=sys.stderr)
    attributing = {how: walls[f"{how} all"] - walls[f"{how} done"] for how in commands}
    return {
        "scaling_2proc": attributing["one"] / attributing["two"],
        "scaling_2proc_whole": walls["one all"] / walls["two all"],
    }


if __name__ == "__main__":
    main()
