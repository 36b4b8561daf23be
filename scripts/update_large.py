"""Write what DeepSeek-R1 takes, stage by stage, into docs/large.md. python scripts/update_large.py [--check]

Computed from its published configuration (mixprec/models/known_shapes.yaml) and the rates in mixprec/pipeline/rates.py
and clusters.py; no weight is read.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import generated

from mixprec.importance.cost import PAPER_CORPUS, Shape, cost
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.pipeline import checked, clusters
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.clusters import Cluster, Placed
from mixprec.pipeline.rates import H200, H200_MEMORY
from mixprec.recipe import Recipe
from mixprec.report.formatting import size

PAGE = Path(__file__).parents[1] / "docs" / "large.md"
MODEL = "deepseek-ai/DeepSeek-R1"
CLUSTERS = {"8 x H200": clusters.h200s(1), "4 x 8 x H200": clusters.h200s(4)}
FORMATS = ["w2g128", "w3g128", "w4g128"]
RECIPE = {
    "model": {"id": MODEL, "dtype": "bfloat16", "device": "cuda"},
    "compress": {
        "method": "gptq",
        "calibration": {"traces": "bundled:attribution", "samples": 128, "tokens": 2048},
    },
    "variants": {"w3": {"plan": {"default": "w3g128"}}},
    "evaluate": {"traces": {"source": "bundled:held_out"}},
}
SCORED = {**RECIPE, "sensitivity": {"formats": FORMATS, "samples": 32}}


@cache
def _known() -> tuple[Recipe, Checked, Recipe, Checked]:
    """The recipe without and with tables of damage, and what is known of each."""
    plain, scored = Recipe.model_validate(RECIPE), Recipe.model_validate(SCORED)
    return plain, checked(plain), scored, checked(scored)


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
    return "\n".join(rows)


def _stored() -> int:
    from mixprec.pipeline import traffic

    config = load_config(MODEL)
    return traffic.stored(config, decoder_of(config), None).all


def attribution() -> str:
    """The paper's corpus through the model."""
    found = cost(load_config(MODEL), "bfloat16", PAPER_CORPUS.longest)
    held = found.ours.total - found.ours.weights
    rows = ["| GPUs | hours | memory of a process beside a block |", "|--:|--:|--:|"]
    for cluster in CLUSTERS.values():
        hours = found.our_flops / H200.products["bfloat16"] / cluster.all / 3600
        rows.append(f"| {cluster.all} | {hours:.2f} | {size(held)} |")
    return "\n".join(rows)


def stages(cluster: Cluster) -> str:
    """A table of stages on a cluster, by torchrun."""
    _, _, scored, found = _known()
    made = clusters.placing(scored, found, "torchrun", cluster)
    rows = [
        "| stage | GPUs | hours | memory of a process | fits | storage | network |",
        "|---|--:|--:|--:|---|--:|--:|",
    ]
    for each in made.listed:
        fits = "yes" if each.memory <= H200_MEMORY else "no"
        rows.append(
            f"| {each.name} | {each.gpus} | {_hours(each)} | {size(each.memory)} | {fits} | {size(each.storage)} | "
            f"{size(each.network) if each.network else ''} |"
        )
    return "\n".join(rows)


def _hours(each: Placed) -> str:
    return "unknown" if each.seconds is None else f"{each.seconds / 3600:.2f}"


def body() -> str:
    """All generated parts."""
    parts = [sizes(), "", "Attribution of the paper's 120 traces (815,115 tokens):", "", attribution()]
    for name, cluster in CLUSTERS.items():
        parts += ["", f"On {name}:", "", stages(cluster)]
    return "\n".join(parts) + "\n"


def page() -> str:
    """docs/large.md with the figures of today's code."""
    return generated.filled(PAGE, "plan", body())


if __name__ == "__main__":
    generated.main(PAGE, page)
