"""What a recipe needs of GPUs and of the network, before anything is downloaded: by arithmetic on the published sizes.

Decoding reads all weights and all running outputs' keys and values once a step, or is bound by products where many
outputs run at once. GPUs' figures are those of their makers' data sheets; the shares of these that decoding reaches are
assumptions, so that hours are rough to a factor of two. Outputs are taken to be as long as the paper's 120 traces on
average, and, at most, as long as the recipe lets them be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mixprec.core.errors import UserError
from mixprec.evaluate.spec import EngineSpec
from mixprec.importance.cost import PAPER_CORPUS, Shape
from mixprec.models import conversion, locate
from mixprec.pipeline import owncosts, traffic
from mixprec.pipeline.checks import Checked
from mixprec.recipe import Recipe


class Gpu(NamedTuple):
    """``memory``: bytes; ``bandwidth``: bytes a second; ``flops``: dense products in bfloat16, a second."""

    memory: int
    bandwidth: float
    flops: float


#: By NVIDIA's data sheets of each product (memory, memory bandwidth, dense BF16 tensor cores).
GPUS = {
    "H100 80GB": Gpu(80 * 10**9, 3.35e12, 9.89e14),
    "H200 141GB": Gpu(141 * 10**9, 4.8e12, 9.89e14),
    "A100 80GB": Gpu(80 * 10**9, 2.04e12, 3.12e14),
    "L40S 48GB": Gpu(48 * 10**9, 8.64e11, 3.62e14),
    "RTX 4090 24GB": Gpu(24 * 10**9, 1.01e12, 1.65e14),
}
DEFAULT = "H100 80GB"
#: Assumed shares of bandwidth and of products that decoding reaches.
_BANDWIDTH, _FLOPS = 0.6, 0.4
#: Outputs that vLLM lets run at once where it isn't told otherwise (its max_num_seqs).
_AT_ONCE = 256
#: Bytes of weights and of caches, in 16 bits.
_ITEM = 2


class Need(NamedTuple):
    """``gpus`` that the recipe asks for, ``least`` that hold the model and one longest output; ``weights``: bytes;
    ``at_once``: outputs; ``hours`` at the mean length of the paper's traces, ``most`` at the longest. Where the recipe
    asks for too few, all is for the least."""

    gpu: str
    gpus: int
    least: int
    weights: int
    at_once: int
    outputs: int
    hours: float
    most: float


def find(name: str) -> str:
    """The name of a GPU in the table. Raises UserError for others."""
    wanted = name.lower().replace(" ", "")
    found = [each for each in GPUS if each.lower().replace(" ", "").startswith(wanted)]
    if len(found) != 1:
        raise UserError(f"--gpu: {name!r} is none of {', '.join(GPUS)}")
    return found[0]


@conversion.without_converting()
def need(chosen: Recipe, found: Checked, name: str = DEFAULT) -> Need | None:
    """What the outputs take that vLLM writes; None for a recipe in which it writes none."""
    written = list(_written(chosen, found))
    if not written or found.config is None:
        return None
    shape = Shape.of(found.config)
    parts = [_part(shape, spec, outputs, longest, GPUS[name]) for spec, outputs, longest in written]
    return Need(
        name,
        max(spec.gpus for spec, _, _ in written),
        max(each.least for each in parts),
        max(each.weights for each in parts),
        min(each.at_once for each in parts),
        sum(outputs for _, outputs, _ in written),
        sum(each.hours for each in parts),
        sum(each.most for each in parts),
    )


@conversion.without_converting()
def downloads(chosen: Recipe, found: Checked) -> dict[str, int]:
    """Model on the hub that is not on this machine -> bytes of its weights."""
    named = [(chosen.model.id, found.model)] if _reads_weights(chosen, found) else []
    named += [(each.id, each.as_model()) for each in (chosen.shift.models if chosen.shift else {}).values()]
    if chosen.compress.fine_tuned_from is not None:
        base = chosen.compress.fine_tuned_from
        named.append((base.id, base.as_model()))
    return {
        name: traffic.stored(model.config, model.decoder, None).all
        for name, model in named
        if model is not None and model.here is None and locate.unconverted(name) is None
    }


def _reads_weights(chosen: Recipe, found: Checked) -> bool:
    """Whether anything but the configuration of the recipe's model is looked at: servers answer without it."""
    stages = (chosen.distill, chosen.generate, chosen.importance, chosen.sensitivity, chosen.ablation, chosen.shift)
    compared = chosen.evaluate is not None and (chosen.evaluate.traces or chosen.evaluate.text)
    changed = any(plan is None or plan.changed for plan in found.plans.values())
    return bool(any(stages) or compared or changed or chosen.answering)


def _written(chosen: Recipe, found: Checked) -> list[tuple[EngineSpec, int, int]]:
    """Engine, outputs and their longest length, wherever vLLM writes."""
    listed = []
    evaluate, generate = chosen.evaluate, chosen.generate
    if evaluate is not None and evaluate.engine.kind == "vllm" and evaluate.protocol == "generate":
        outputs = sum(evaluate.outputs().values()) * len(chosen.answering)
        listed += [(evaluate.engine, outputs, evaluate.max_new_tokens)] if outputs else []
    if generate is not None and generate.engine.kind == "vllm" and "generate.prompts" in found.held:
        own = chosen.shift is not None and chosen.shift.traces == "own"
        models = 1 + (len(owncosts.compared(chosen, found.plans)) if own else 0)
        prompts = len(found.held["generate.prompts"].texts)
        listed.append((generate.engine, models * prompts, generate.max_new_tokens))
    return listed


def _part(shape: Shape, engine: EngineSpec, outputs: int, longest: int, gpu: Gpu) -> Need:
    weights, room = shape.parameters * _ITEM, gpu.memory * engine.memory
    mean = min(longest, PAPER_CORPUS.tokens // PAPER_CORPUS.traces)
    least = math.ceil((weights + shape.keys_values(longest, _ITEM)) / room)
    free = max(engine.gpus, least) * room - weights
    at_once = max(1, min(_AT_ONCE, outputs, int(free / shape.keys_values(mean, _ITEM))))
    return Need(
        "",
        engine.gpus,
        least,
        weights,
        at_once,
        outputs,
        _hours(shape, gpu, max(engine.gpus, least), at_once, outputs, mean),
        _hours(shape, gpu, max(engine.gpus, least), max(1, at_once * mean // longest), outputs, longest),
    )


def _hours(shape: Shape, gpu: Gpu, gpus: int, at_once: int, outputs: int, tokens: int) -> float:
    """Of so many outputs of ``tokens`` each, ``at_once`` of them running; half of a cache is full on average."""
    read = shape.parameters * _ITEM + at_once * shape.keys_values(tokens // 2, _ITEM)
    products = at_once * (2 * shape.active + shape.head)
    step = max(read / (gpus * gpu.bandwidth * _BANDWIDTH), products / (gpus * gpu.flops * _FLOPS))
    return math.ceil(outputs / at_once) * tokens * step / 3600
