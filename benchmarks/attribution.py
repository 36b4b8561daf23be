"""Attribution against a plain forward pass and against the released algorithm, in one run.

python benchmarks/attribution.py [--quick] [--data FOLDER] --json OUT

Keys of OUT (null: not measured)
    time_vs_forward           CPU time of the whole attribution (preset paper, four behaviours), over that of
                              ``model(input_ids)`` without gradients on the same traces, logits of all tokens included
    time_vs_body              the same against the decoder alone, without any logits
    speedup_vs_released       CPU time of the released algorithm over ours, both for preset released: per span one
                              full forward and backward pass over the prefix, all parameters requiring gradients, with
                              one forward pass per trace for the activation means. Measured on a sample of spans,
                              extrapolated to all by a straight line in the number of prefix tokens and its square
    peak_over_weights_and_kv  (peak resident memory - resident memory after imports) / (bytes of weights + of the
                              KV cache) over one long trace, in a process of its own
    peak_full_backward        the same for one full backward pass over that trace
    max_rel_error             largest difference to full backpropagation on real spans, over the largest gradient
                              of that module and span
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="8 traces up to 2,048 tokens, a 2,048-token trace for memory"
    )
    parser.add_argument("--data", default=os.environ.get("MIXPREC_DATA") or str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--threads", type=int, default=1, help="1 keeps CPU time comparable on a shared machine")
    parser.add_argument("--json", required=True, help="where the figures go")
    parser.add_argument("--memory", choices=["ours", "full"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(measure_memory(arguments)))
        return
    figures = measure(arguments)
    for key, which in (("peak_over_weights_and_kv", "ours"), ("peak_full_backward", "full")):
        figures |= in_own_process(arguments, which, key)
    Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def load_traces(arguments: argparse.Namespace, loaded: Any, per_dataset: int, limit: int) -> list[dict[str, Any]]:
    """Traces spread over the four benchmarks and over lengths, with their work under both presets."""
    import torch

    from mixprec.importance.options import PRESETS, AttributionOptions
    from mixprec.importance.windows import plan_work
    from mixprec.traces import spans, store

    path = Path(arguments.data) / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"
    by_dataset: dict[str, list[Any]] = {}
    for trace in store.load(str(path)):
        by_dataset.setdefault(trace.dataset, []).append(trace)
    chosen = []
    for traces in by_dataset.values():
        ordered = sorted(traces, key=lambda trace: len(trace.text))
        chosen += [ordered[(2 * i + 1) * len(ordered) // (2 * per_dataset)] for i in range(per_dataset)]
    rows = []
    for trace in chosen:
        encoded = loaded.tokenizer(trace.text, return_offsets_mapping=True, verbose=False)
        ids = torch.tensor(encoded["input_ids"][:limit])
        works = {}
        for preset in PRESETS:
            found, _ = spans.token_spans(spans.char_spans(trace, preset).spans, encoded["offset_mapping"], limit)
            works[preset] = plan_work(found, store.BEHAVIOURS, len(ids), AttributionOptions.of(preset))
        rows.append({"id": trace.id, "ids": ids, "works": works})
    return rows


def ours(loaded: Any, row: dict[str, Any], preset: str) -> Any:
    """One trace through our engine."""
    import torch

    from mixprec.importance.engine import Layout, run_trace

    work = row["works"][preset]
    rows = torch.cat([torch.ones(1, len(row["ids"])), work.rows])
    return run_trace(loaded.model, Layout.of_linears(loaded.linears), row["ids"], rows, work.windows)


def timed(call: Any) -> float:
    """CPU seconds of a call: what other processes take does not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mixprec import models

    torch.set_num_threads(arguments.threads)
    loaded = models.load(models.BUNDLED)
    limit = 2048 if arguments.quick else 8192
    traces = load_traces(arguments, loaded, 2 if arguments.quick else 6, limit)
    ours(loaded, traces[0], "paper")  # warm up
    totals = {"forward": 0.0, "body": 0.0, "paper": 0.0, "released": 0.0}
    for number, row in enumerate(traces, 1):
        ids = row["ids"][None]
        with torch.no_grad():
            forward = timed(lambda ids=ids: loaded.model(ids, use_cache=False))
            body = timed(lambda ids=ids: loaded.model.model(ids, use_cache=False))
        paper = timed(lambda row=row: ours(loaded, row, "paper"))
        released = timed(lambda row=row: ours(loaded, row, "released"))
        for key, value in (("forward", forward), ("body", body), ("paper", paper), ("released", released)):
            totals[key] += value
        windows = len(row["works"]["paper"].windows)
        print(f"{number}/{len(traces)} {row['id']}: {ids.shape[1]} tokens, {windows} spans, "
              f"forward {forward:.1f} s, ours {paper:.1f} s ({paper / forward:.2f})", file=sys.stderr)  # fmt: skip
    reference = released_seconds(loaded, traces, totals["forward"], 8 if arguments.quick else 14)
    spans = sum(len(row["works"]["paper"].windows) for row in traces)
    covered = sum(w.end - w.start for row in traces for w in row["works"]["paper"].windows)
    tokens = sum(len(row["ids"]) for row in traces)
    return {
        "time_vs_forward": totals["paper"] / totals["forward"],
        "time_vs_body": totals["paper"] / totals["body"],
        "speedup_vs_released": reference["seconds"] / totals["released"],
        "max_rel_error": max_relative_error(loaded, traces, 3 if arguments.quick else 6),
        "traces": len(traces),
        "tokens": tokens,
        "spans": spans,
        "span_token_share": covered / tokens,
        "seconds_forward": totals["forward"],
        "seconds_ours_paper": totals["paper"],
        "seconds_ours_released": totals["released"],
        "seconds_released_extrapolated": reference["seconds"],
        "released_spans_measured": reference["measured"],
        "released_spans": reference["spans"],
        "released_fit_error": reference["fit_error"],
        "threads": arguments.threads,
        "quick": arguments.quick,
    }


def released_span(loaded: Any, ids: Any, window: Any) -> None:
    """The released algorithm for one span: full forward and backward over the prefix, every gradient kept."""
    outputs = {}

    def keep(name: str, output: Any) -> None:
        output.retain_grad()
        outputs[name] = output

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name, module in loaded.linears.items()
    ]
    try:
        labels = ids.clone()
        labels[: window.start] = -100
        loaded.model(ids[None, : window.end], labels=labels[None, : window.end], use_cache=False).loss.backward()
        for output in outputs.values():
            output.grad[0, window.start : window.end].mean(0)
    finally:
        for handle in handles:
            handle.remove()
        loaded.model.zero_grad(set_to_none=True)


def released_seconds(loaded: Any, traces: list[dict[str, Any]], forward: float, samples: int) -> dict[str, Any]:
    """CPU seconds of the released algorithm for all spans, from a sample spread evenly over the prefix lengths."""
    import numpy as np
    from scipy.optimize import nnls

    spans = [(row["ids"], w) for row in traces for w in row["works"]["released"].windows if w.end - w.start > 1]
    spans.sort(key=lambda span: span[1].end)
    chosen = [spans[(2 * i + 1) * len(spans) // (2 * samples)] for i in range(samples)]
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(True)
    released_span(loaded, *chosen[0])  # warm up
    seconds = np.array([timed(lambda span=span: released_span(loaded, *span)) for span in chosen])
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)

    def features(lengths: Any) -> Any:
        scaled = np.asarray(lengths, dtype=float) / 1000
        return np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1)

    measured = features([window.end for _, window in chosen])
    # Relative residuals, so that short prefixes count as well; costs can't be negative.
    coefficients, _ = nnls(measured / seconds[:, None], np.ones(len(seconds)))
    predicted = features([window.end for _, window in spans]) @ coefficients
    return {
        "seconds": float(predicted.sum()) + forward,
        "measured": samples,
        "spans": len(spans),
        "fit_error": float(np.abs(measured @ coefficients / seconds - 1).max()),
    }


def max_relative_error(loaded: Any, traces: list[dict[str, Any]], samples: int) -> float:
    """Against full backpropagation (frozen parameters), module by module, over spans of several traces."""
    import torch
    import torch.nn.functional as F

    from mixprec.importance.engine import Layout

    layout = Layout.of_linears(loaded.linears)
    worst = 0.0
    usable = [row for row in traces if row["works"]["paper"].windows and len(row["ids"]) <= 2048]
    for row in usable[:samples]:
        found = ours(loaded, row, "paper").gradients
        windows = row["works"]["paper"].windows
        number = len(windows) // 2
        window, ids = windows[number], row["ids"]
        outputs: dict[str, Any] = {}

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
            difference = (found[number, where] - reference).abs().max() / reference.abs().max()
            worst = max(worst, float(torch.nan_to_num(difference, nan=torch.inf)))
    return worst


def in_own_process(arguments: argparse.Namespace, which: str, key: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--json", os.devnull, "--data", arguments.data, "--memory", which]
    command += ["--quick"] if arguments.quick else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{key}: not measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {key: None}
    result = json.loads(done.stdout)
    return {key: result["ratio"], **({"memory_tokens": result["tokens"]} if which == "ours" else {})}


class Peak:
    """Highest resident memory inside the block, in bytes, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        import psutil

        self._process = psutil.Process()
        self.bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    import psutil
    import torch

    from mixprec import models
    from mixprec.importance import attribute  # noqa: F401 (all imports count as imports)

    torch.set_num_threads(arguments.threads)
    after_imports = psutil.Process().memory_info().rss
    limit = 2048 if arguments.quick else 8000
    with Peak() as peak:
        loaded = models.load(models.BUNDLED)
        # The longest traces are cut to exactly the length wanted.
        row = next(r for r in reversed(load_traces(arguments, loaded, 6, limit)) if len(r["ids"]) == limit)
        if arguments.memory == "ours":
            ours(loaded, row, "paper")
        else:
            released_span(with_gradients(loaded), row["ids"], row["works"]["paper"].windows[-1]._replace(end=limit))
    config = loaded.model.config
    weights = sum(p.nbytes for p in loaded.model.parameters())
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * limit * 4
    return {"ratio": (peak.bytes - after_imports) / (weights + cache), "tokens": limit}


def with_gradients(loaded: Any) -> Any:
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(True)
    return loaded


if __name__ == "__main__":
    main()
