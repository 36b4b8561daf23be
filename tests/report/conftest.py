"""Synthetic results with plausible values: heavy-tailed scores, variants as the quickstart has them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mixprec.evaluate.engines.base import Finish
from mixprec.evaluate.generations import Key, Record
from mixprec.report.folder import RunFolder
from mixprec.report.outputs import Outputs
from mixprec.traces.spans import AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

BEHAVIOURS = ("backtracking", "uncertainty_estimation", "example_testing", "adding_knowledge")
KINDS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
KINDS |= {kind: f"mlp.{kind}_proj" for kind in ("gate", "up", "down")}
TOPS = ("last_up", "last_down", "3_down", "last_gate")


def build_importance(layers: int = 30, seed: int = 0) -> dict[str, Any]:
    """An importance artifact of a decoder with so many layers; each behaviour's top module is in TOPS."""
    generator = np.random.default_rng(seed)
    modules = [
        {
            "address": f"model.layers.{layer - 1}.{path}",
            "label": f"{layer}_{kind}",
            "layer": layer,
            "kind": kind,
        }
        for layer in range(1, layers + 1)
        for kind, path in KINDS.items()
    ]
    behaviours = {}
    for index, (behaviour, top) in enumerate(zip(BEHAVIOURS, TOPS, strict=True)):
        scores = 2e-3 * generator.lognormal(0, 1.1, len(modules)) * (1 + 0.3 * index)
        label = top.replace("last", str(layers))
        position = next(i for i, module in enumerate(modules) if module["label"] == label)
        scores[position] = 1.3 * scores.max()
        spans = 40 + 23 * index
        behaviours[behaviour] = {
            "scores": [float(score) for score in scores],
            "traces": 20 + index,
            "spans": spans,
            "tokens": 31 * spans,
            "intervals": [[0.8 * float(score), 1.3 * float(score)] for score in scores],
            "rank_intervals": [[1, 3] for _ in scores],
            "stability": {"spearman_mean": 0.913, "spearman_p5": 0.847, "top10_overlap_mean": 7.25, "resamples": 990},
        }
    return {
        "schema_version": 1,
        "provenance": {"mixprec": "0.1.0", "git_revision": None, "packages": {"torch": "2.13.0"}},
        "preset": "paper",
        "options": {"absolute": "outside", "divisor": "traces", "preceding_tokens": 5},
        "modules": modules,
        "behaviours": behaviours,
        "skipped": {"text not found in the trace": 7, "unknown label": 3, "beyond the context": 0},
        "traces": 24,
        "resamples": 1000,
        "comparison": {name: {"spearman": 0.81 - 0.1 * i, "top10_overlap": 7 - i} for i, name in enumerate(BEHAVIOURS)},
    }


def metrics(kl: float, perplexity: float, spread: float = 0.05) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "kl_mean": kl,
        "kl_mean_ci": [kl * (1 - spread), kl * (1 + spread)],
        "kl_median": kl * 0.6,
        "kl_p99": kl * 7,
        "top1_agreement": 1 / (1 + kl) ** 0.5,
    }


def build_variant(
    description: str, effective: float, quantized: int, kl: float, perplexity: float, spread: float = 0.05
) -> dict[str, Any]:
    return {
        "description": description,
        "code_bits": effective - 0.25 * (quantized / 210),
        "effective_bits": effective,
        "bytes": int(56_623_104 + 106_168_320 * effective / 8),
        "bytes_on_disk": 269_000_000,
        "modules_quantized": quantized,
        **metrics(kl, perplexity, spread),
        "text": metrics(kl * 1.1, perplexity * 2.7, spread),
        "behaviours": {
            name: {
                "tokens": 2100 + 517 * i,
                **metrics(kl * (0.8 + 0.15 * i), perplexity * (1.1 - 0.1 * i), 0.15),
            }
            for i, name in enumerate(BEHAVIOURS)
        },
    }


def build_summary() -> dict[str, Any]:
    variants = {
        "bf16": build_variant("the model's own 16-bit weights", 16.0, 0, 0.0, 8.412),
        "w3": build_variant("every linear in 3 bits, round to nearest, groups of 64", 3.25, 210, 1.72, 31.06),
        "w3_last_mlp": build_variant("w3, the last layer's MLP kept in 16 bits", 3.576, 207, 1.31, 24.7),
        "w3_random": build_variant("w3, random modules of the same size kept", 3.576, 207, 1.66, 29.93),
        "only_last_up": build_variant("only the last up projection in 3 bits", 15.89, 1, 0.0123, 8.52),
        "only_last_k": build_variant("only the least important module of the last layer", 15.99, 1, 0.00087, 8.42),
    }
    importance = build_importance()
    behaviours = {}
    for name, entry in importance["behaviours"].items():
        order = np.argsort(-np.array(entry["scores"]), kind="stable")[:10]
        total = sum(entry["scores"])
        behaviours[name] = {
            "top_modules": [
                {
                    "label": importance["modules"][i]["label"],
                    "address": importance["modules"][i]["address"],
                    "score": entry["scores"][i],
                    "relative": entry["scores"][i] / total,
                    "rank": rank,
                }
                for rank, i in enumerate(order, 1)
            ],
            "spans": entry["spans"],
            "traces": entry["traces"],
        }
    return {
        "schema_version": 1,
        "recipe": "quickstart",
        "differences": {
            "w3": {
                "w3_last_mlp": {"kl_difference": 0.41, "ci": [0.38, 0.44]},
                "w3_random": {"kl_difference": 0.06, "ci": [-0.02, 0.14]},
            },
            "w3_random": {"w3_last_mlp": {"kl_difference": 0.35, "ci": [0.3, 0.4]}},
            "only_last_up": {"only_last_k": {"kl_difference": 0.0114, "ci": [0.01, 0.013]}},
        },
        "title": "Which weights does SmolLM2-135M reason with?",
        "model": "bundled:smollm2-135m-instruct",
        "evaluation": {
            "traces": {"tokens": 4096, "passages": 8},
            "text": {"tokens": 8192, "passages": 16},
            "skipped": {"past the context": 2},
        },
        "variants": variants,
        "behaviours": behaviours,
        "provenance": {
            "mixprec": "0.1.0",
            "git_revision": "0123456789abcdef0123456789abcdef01234567",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
            "model": {"id": "bundled:smollm2-135m-instruct", "sha256": "b179c952" + "0" * 50 + "10db53"},
            "seed": 0,
        },
    }


def build_layout(layers: int = 30, experts: int = 1, bits: float = 3.25) -> dict[str, Any]:
    """layout.json: embedding and head kept, everything else in one format but the last up."""
    cells = [{"layer": 0, "kind": "embedding", "weights": 10**7, "bits": 16.0, "formats": {"keep": 1}}]
    for layer, kind in itertools.product(range(1, layers + 1), KINDS):
        count = experts if kind in ("gate", "up", "down") else 1
        kept = (layer, kind) == (layers, "up")
        formats = {"keep": 1} if kept else {f"w{bits:.0f}g64": count}
        if experts > 1 and kind == "down":
            formats = {"w2g64": experts - 8, "w4g64": 8}
        cells.append(
            {"layer": layer, "kind": kind, "weights": 10**6, "bits": 16.0 if kept else bits, "formats": formats}
        )
    cells.append({"layer": 0, "kind": "head", "weights": 10**7, "bits": 16.0, "formats": {"keep": 1}})
    return {"schema_version": 1, "layers": layers, "tied": False, "cells": cells}


TRACE = "How many 🍐?\nOkay 🙂. Wait, no. I recall five."


def build_held_out(count: int = 2) -> tuple[AnnotatedTrace, ...]:
    """Traces with a character of two UTF-16 units in front of their spans."""
    prompt = TRACE.index("Okay")
    at = TRACE.index("Wait")
    spans = [CharSpan("backtracking", at, at + 9), CharSpan("adding_knowledge", at + 10, len(TRACE))]
    return tuple(
        AnnotatedTrace(Trace(f"trace {number}", "", TRACE[:prompt], TRACE[prompt:]), spans)
        for number in range(1, count + 1)
    )


def build_tokens(factor: float = 1.0, count: int = 2) -> dict[str, Any]:
    """tokens.json: words as tokens; the KL of each is its place, from 0.1 on, times ``factor``."""
    places = [(found.start(), found.end()) for found in re.finditer(r"\s*\S+", TRACE)][1:]
    row = [(start, end, round(factor * number / 10, 4)) for number, (start, end) in enumerate(places, 1)]
    return {"schema_version": 1, "of": count, "traces": [{"tokens": row, "of": len(row)} for _ in range(count)]}


def build_outputs(text: str, finish: Finish, outcome: str) -> Outputs:
    """Five questions of a benchmark, with the same output each."""
    keys = [("folio", Key(f"q{number}", 0)) for number in range(5)]
    records = {key: Record(text, finish, 17, 30) for key in keys}
    return Outputs(records, dict.fromkeys(keys, outcome), {"folio": "FOLIO"})


def build_run(layers: int = 30, experts: int = 1) -> RunFolder:
    """A run with all that a report can show."""
    summary = build_summary()
    summary["benchmarks"] = {"baseline": "bf16"}
    summary["variants"]["w3_random"]["control"] = True
    summary["variants"]["w3_peer"] = summary["variants"]["w3"] | {"engine": "gptqmodel", "kl_mean": 1.6}
    quantized = [name for name in summary["variants"] if name != "bf16"]
    return RunFolder(
        "quickstart",
        summary,
        build_importance(layers),
        "# mixprec run recipes/quickstart.yaml\nmodel: {id: <bundled> & more}\n",
        layouts={name: build_layout(layers, experts) for name in quantized},
        token_kl={"bf16": build_tokens(0), "w3": build_tokens(), "w3_last_mlp": build_tokens(0.5)},
        held_out=build_held_out(),
        outputs={
            "bf16": build_outputs("True, since all of them are.", "stop", "correct"),
            "w3": build_outputs("Well. " + "So it is what it is, they say. " * 200, "length", "none"),
        },
    )


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunFolder]:
    return build_run


@pytest.fixture(scope="session")
def make_outputs() -> Callable[..., Outputs]:
    return build_outputs


@pytest.fixture(scope="session")
def make_importance() -> Callable[..., dict[str, Any]]:
    return build_importance


@pytest.fixture(scope="session")
def make_summary() -> Callable[[], dict[str, Any]]:
    return build_summary


@pytest.fixture
def make_variant() -> Callable[..., dict[str, Any]]:
    return build_variant


@pytest.fixture
def importance() -> dict[str, Any]:
    return build_importance()


@pytest.fixture
def summary() -> dict[str, Any]:
    return build_summary()
