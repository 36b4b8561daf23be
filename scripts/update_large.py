"""Write what DeepSeek-R1 takes, stage by stage, into docs/large.md. python scripts/update_large.py [--check]

Computed from its published configuration (mixprec/models/known_shapes.yaml) and the rates in mixprec/pipeline/rates.py
and clusters.py; no weight is read.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import generated

from mixprec.importance.cost import PAPER_CORPUS, Shape, cost
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.pipeline import checked, clusters
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.clusters import Cluster
from mixprec.pipeline.rates import BFLOAT16, CPU, FLOAT32, H200, H200_MEMORY, MEMORY_RATE, SHARE
from mixprec.recipe import Recipe
from mixprec.report.formatting import size

PAGE = Path(__file__).parents[1] / "docs" / "large.md"
MODEL = "deepseek-ai/DeepSeek-R1"
CLUSTERS = {"8 x H200": clusters.h200s(1), "4 x 8 x H200": clusters.h200s(4)}
#: Bytes that a process has for what its traces keep while the blocks go by: importance.sweep_gb.
_SWEEP = 64_000_000_000
RECIPE = {
    "model": {"id": MODEL, "dtype": "bfloat16", "device": "cuda"},
    "compress": {
        "method": "gptq",
        "calibration": {"traces": "bundled:attribution", "samples": 128, "tokens": 2048},
    },
    "sensitivity": {"formats": ["w2g128", "w3g128", "w4g128"], "samples": 32},
    "variants": {"w3": {"plan": {"default": "w3g128"}}},
    "evaluate": {"traces": {"source": "bundled:held_out"}},
}


@cache
def _known() -> tuple[Recipe, Checked]:
    """The recipe, and what is known of it without weights."""
    chosen = Recipe.model_validate(RECIPE)
    return chosen, checked(chosen)


def sizes() -> str:
    """The model in numbers."""
    shape, decoder = Shape.of(load_config(MODEL)), decoder_of(load_config(MODEL))
    experts = sum(linear.expert is not None for linear in decoder.linears)
    block = max(sum(linear.weights for linear in each.linears) for each in decoder.blocks)
    hessian = 4 * decoder.widest_input**2
    count, active, all_of_it = len(decoder.linears), shape.active / 1e9, shape.parameters
    rows = [
        f"- {all_of_it / 1e9:.0f} · 10⁹ parameters in {decoder.layers} blocks; {count:,} linear modules, {experts:,} "
        f"of them of experts; a token meets {active:.1f} · 10⁹ weights.",
        f"- In bfloat16 {size(2 * all_of_it)}; its files, in 8 bits, {size(_stored())}.",
        f"- The largest block: {size(2 * block)} in bfloat16; a second moment of the widest input: {size(hessian)}.",
    ]
    calibration = RECIPE["compress"]["calibration"]
    tokens = calibration["samples"] * calibration["tokens"]
    layer = [group for group in decoder.blocks[-1].groups if group.routed is not None]
    seen = float(decoder.active(layer[0][0])) * tokens
    moments = 4 * sum(group[0].in_features ** 2 for group in layer)
    rows += [
        f"- Of {tokens:,} calibration tokens an expert sees {seen:,.0f} on average; their states take "
        f"{size(2 * tokens * decoder.sizes.hidden)}.",
        f"- Second moments of all experts of a layer: {size(moments)}.",
    ]
    return "\n".join(rows)


def _stored() -> int:
    from mixprec.pipeline import traffic

    config = load_config(MODEL)
    return traffic.stored(config, decoder_of(config), None).all


def attribution() -> str:
    """The paper's corpus through the model, its weights streamed: traces are as long as they are on average."""
    mean = PAPER_CORPUS.tokens // PAPER_CORPUS.traces
    longest, found = (cost(load_config(MODEL), "bfloat16", tokens) for tokens in (PAPER_CORPUS.longest, mean))
    held, most = (each.ours.total - each.ours.weights for each in (found, longest))
    rows = ["| GPUs | computing | reading | memory of the longest trace | storage |", "|--:|--:|--:|--:|--:|"]
    for cluster in CLUSTERS.values():
        traces = math.ceil(PAPER_CORPUS.traces / cluster.all)
        sweeps = 2 * math.ceil(traces * held / _SWEEP)
        read = cluster.all * sweeps * _stored()
        computing = found.our_flops / H200.products["bfloat16"] / cluster.all
        reading = read / cluster.machines / cluster.storage
        rows.append(f"| {cluster.all} | {_time(computing)} | {_time(reading)} | {size(most)} | {size(read)} |")
    return "\n".join(rows)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def stages(cluster: Cluster) -> str:
    """A table of stages on a cluster, by torchrun."""
    made = clusters.placing(*_known(), "torchrun", cluster)
    rows = [
        "| stage | GPUs | time | memory of a process | fits | storage | network |",
        "|---|--:|--:|--:|---|--:|--:|",
    ]
    for each in made.listed:
        took = "unknown" if each.seconds is None else _time(each.seconds)
        fits, sent = "yes" if each.memory <= H200_MEMORY else "no", size(each.network) if each.network else ""
        columns = (each.name, str(each.gpus), took, size(each.memory), fits, size(each.storage), sent)
        rows.append(f"| {' | '.join(columns)} |")
    return "\n".join(rows)


def body() -> str:
    """All generated parts."""
    corpus = f"{PAPER_CORPUS.traces} traces ({PAPER_CORPUS.tokens:,} tokens)"
    told = f"Attribution of the paper's {corpus}, streamed, with {size(_SWEEP)} for what traces keep (`sweep_gb`):"
    parts = [sizes(), "", told, "", attribution()]
    for name, cluster in CLUSTERS.items():
        parts += ["", f"On {name}:", "", stages(cluster)]
    return "\n".join(parts) + "\n"


def constants() -> str:
    """The rates, and where each is from."""
    cluster, sheet = CLUSTERS["4 x 8 x H200"], "NVIDIA's data sheet of the H200"
    listed = [
        ("products in bfloat16, without sparsity", f"{BFLOAT16 / 1e12:.0f} · 10¹² a second", sheet),
        ("products in float32", f"{FLOAT32 / 1e12:.0f} · 10¹² a second", sheet),
        ("memory", f"{size(H200_MEMORY)}, {MEMORY_RATE / 1e12:.1f} TB/s", sheet),
        ("share of these that is reached", f"{SHARE:.0%}", "assumed"),
        ("a column of a solve", f"{1e6 * H200.column:.0f} µs", "assumed: some ten kernels"),
        ("the same on one core of a 2-core AMD EPYC", f"{1e6 * CPU.column:.0f} µs", "measured"),
        ("link of a GPU within a machine", f"{cluster.link / 1e9:.0f} GB/s each way", "data sheet of NVLink 4"),
        ("network of a GPU", f"{cluster.network / 1e9:.0f} GB/s each way", "cards of 400 Gb/s"),
        ("storage that all share", f"{cluster.storage / 1e9:.0f} GB/s for a machine", "assumed"),
        ("disk of a process", f"{H200.disk / 1e9:.0f} GB/s", "assumed"),
    ]
    return (
        "\n".join(["| constant | value | from |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in listed)])
        + "\n"
    )


def page() -> str:
    """docs/large.md with the figures of today's code."""
    text = generated.filled(PAGE, "plan", body())
    return generated.within(text, "constants", constants())


if __name__ == "__main__":
    generated.main(PAGE, page)
