"""The pipelines of pareto.py: whose they are, at which sizes, with which settings; a job is PIPELINE@SIZE#DRAW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from allocation import BUDGETS

OURS = "mixprec"
#: Effective bits -> one format for all modules that has them.
UNIFORM = {"3.25": "w3g64", "3.5": "w3g32", "4.0": "w3g16"}
#: What the bytes of a GGUF file are spent on, embedding included: each has a type there, and q3_k and q6_k fall back to
#: iq4_nl and q8_0 where rows are no multiples of 256. Nothing with a minimum for 32 weights: SmolLM2's linears come
#: from Q4_1, which q4_1, q4_k, q5_1 and q5_k would find again.
WHOLE = ("q3_k", "iq4_nl", "w4g32", "w5g32", "q6_k", "w8g32")
#: What our plans of the blocks choose from. Groups of 128 don't divide SmolLM2's rows of 576, and none of these finds
#: the grid that its weights come from (4 bits, 32 weights, a minimum).
CANDIDATES = ("w2g64", "w3g64", "w4g64", "w5g64", "w6g64", "w8g64")
#: llama.cpp's mixtures; sizes of files.
MIXTURES = ("q3_k_s", "q3_k_m", "iq3_s", "iq4_xs", "q4_k_m")
#: AutoRound's own settings: half of the batch of 8 that it has by default, its number of steps as it is.
_SIGNED = {"batch_size": 4, "amp": True}
#: The same in float32, which loses nothing, and is four times as fast on a processor that can't multiply in bfloat16.
_SIGNED_FLOAT32 = {"batch_size": 4, "amp": False}


class Pipeline(NamedTuple):
    """``who``: mixprec or a peer. ``sizes``: effective bits, or mixtures. ``plan``: who gives modules their formats.

    ``settings``: of everything behind the plan; what isn't named is as its maker has it. ``limit``: whether the least
    that it could take is measured too.
    """

    who: str
    title: str
    sizes: tuple[str, ...]
    plan: str
    settings: Mapping[str, Any]
    limit: bool = False


def _ours(title: str, plan: str, sizes: tuple[str, ...] = BUDGETS, limit: bool = False, **settings: Any) -> Pipeline:
    return Pipeline(OURS, title, sizes, plan, {"method": "gptq", **settings}, limit)


def _autoround(
    title: str, iterations: int, plan: str, sizes: tuple[str, ...], signed: Mapping[str, Any] = _SIGNED
) -> Pipeline:
    settings = {"iters": iterations, **signed}
    return Pipeline("autoround", title, sizes, plan, {"method": "autoround", "settings": settings})


_THREE = ("3.25",)
#: Guided solves as they are by default.
_GUIDED = {"guided": {}}
#: And codes and scales that descend behind the pass.
_DESCENDED = {**_GUIDED, "descent": 3}
#: Blocks and sums multiply in bfloat16; nothing else does.
_BF16 = {"products": "bfloat16"}
_NARROW = ("3.25", "3.5")
PIPELINES: dict[str, Pipeline] = {
    "gptq": _ours("GPTQ", "uniform", _THREE, limit=True),
    "gptq_bf16": _ours("GPTQ, products in bfloat16", "uniform", _THREE, limit=True, options=_BF16),
    "gptaq": _ours("GPTAQ", "uniform", _NARROW, method="gptaq"),
    "guided": _ours("guided GPTQ", "uniform", _THREE, options=_GUIDED),
    "guided_gptaq": _ours("guided GPTAQ", "uniform", _THREE, method="gptaq", options=_GUIDED),
    "additive": _ours("plan, GPTQ", "additive"),
    "exchanged": _ours("plan + exchange, GPTQ", "exchanged"),
    "exchanged_gptaq": _ours("plan + exchange, GPTAQ", "exchanged", method="gptaq"),
    "gptq_tuned": _ours("GPTQ, tuned", "uniform", _THREE, tune={}),
    "backtracking": _ours("GPTQ, tuned, backtracking x 8", "uniform", _THREE, tune={}, weigh={"backtracking": 8.0}),
    "gptaq_tuned": _ours("GPTAQ, tuned", "uniform", _THREE, method="gptaq", tune={}),
    "exchanged_tuned": _ours("plan + exchange, GPTQ, tuned", "exchanged", tune={}),
    "exchanged_gptaq_tuned": _ours("plan + exchange, GPTAQ, tuned", "exchanged", method="gptaq", tune={}),
    "guided_tuned": _ours("guided GPTQ, tuned", "uniform", _THREE, options=_GUIDED, tune={}),
    "guided_gptaq_tuned": _ours("guided GPTAQ, tuned", "uniform", _THREE, method="gptaq", options=_GUIDED, tune={}),
    "guided_gptaq_tuned_bf16": _ours(
        "guided GPTAQ, products in bfloat16, tuned", "uniform", _THREE, method="gptaq", options=_GUIDED | _BF16, tune={}
    ),
    "exchanged_guided": _ours("plan + exchange, guided GPTQ", "exchanged", options=_GUIDED),
    "exchanged_guided_tuned": _ours("plan + exchange, guided GPTQ, tuned", "exchanged", options=_GUIDED, tune={}),
    "descended": _ours("guided GPTAQ, descent", "uniform", _THREE, method="gptaq", options=_DESCENDED),
    "descended_tuned": _ours(
        "guided GPTAQ, descent, tuned", "uniform", _THREE, method="gptaq", options=_DESCENDED, tune={}
    ),
    "exchanged_descended_tuned": _ours(
        "plan + exchange, guided GPTAQ, descent, tuned", "exchanged", method="gptaq", options=_DESCENDED, tune={}
    ),
    "gptaq_blocks": _ours("GPTAQ, blocks tuned", "uniform", _THREE, method="gptaq", tune_blocks={}),
    "gptaq_blocks_tuned": _ours(
        "GPTAQ, blocks and model tuned", "uniform", _THREE, method="gptaq", tune_blocks={}, tune={}
    ),
    "exchanged_blocks_tuned": _ours(
        "plan + exchange, GPTAQ, blocks and model tuned", "exchanged", method="gptaq", tune_blocks={}, tune={}
    ),
    "exchanged_guided_blocks_tuned": _ours(
        "plan + exchange, guided GPTAQ, blocks and model tuned",
        "exchanged",
        method="gptaq",
        options=_GUIDED,
        tune_blocks={},
        tune={},
    ),
    "whole": _ours("embedding and blocks planned, GPTQ", "whole", form="gguf"),
    "gguf": _ours("embedding and blocks planned, tuned", "gguf", MIXTURES, form="gguf", tune={}),
    "autoround20": _autoround("AutoRound 20", 20, "uniform", _THREE),
    "autoround50": _autoround("AutoRound 50", 50, "uniform", _THREE),
    "autoround200": _autoround("AutoRound 200", 200, "uniform", _NARROW),
    "autoround1000": _autoround("AutoRound 1,000", 1000, "uniform", _THREE),
    "autoround200_float32": _autoround("AutoRound 200 in float32", 200, "uniform", _NARROW, _SIGNED_FLOAT32),
    "autoscheme200": _autoround("AutoScheme + AutoRound 200", 200, "autoscheme", BUDGETS),
    "modelopt": Pipeline("modelopt", "auto_quantize + GPTQ", BUDGETS, "modelopt", {"method": "gptq"}),
    "llmcompressor": Pipeline("llmcompressor", "GPTQ", _THREE, "uniform", {"method": "gptq"}),
    "llmcompressor_bf16": Pipeline(
        "llmcompressor", "GPTQ in bfloat16", _THREE, "uniform", {"method": "gptq", "dtype": "bfloat16"}
    ),
    "gptqmodel": Pipeline("gptqmodel", "GPTQ", _THREE, "uniform", {"method": "gptq"}),
    "gptqmodel_bf16": Pipeline(
        "gptqmodel", "GPTQ in bfloat16", _THREE, "uniform", {"method": "gptq", "dtype": "bfloat16"}
    ),
    "gptqmodel_gptaq": Pipeline("gptqmodel", "GPTAQ", _NARROW, "uniform", {"method": "gptaq"}),
    "llamacpp": Pipeline("llamacpp", "its quantizer", MIXTURES, "mixture", {"method": "mixture"}),
}
#: Our pipelines from the most complete one to the least: the first that was measured at a size stands for us, whatever
#: its KL on the text that figures are read from.
FLAGSHIPS = (
    "exchanged_descended_tuned", "exchanged_guided_blocks_tuned", "exchanged_blocks_tuned", "exchanged_guided_tuned",
    "exchanged_gptaq_tuned", "exchanged_tuned", "exchanged_gptaq", "exchanged", "additive", "descended_tuned",
    "gptaq_blocks_tuned", "guided_gptaq_tuned", "guided_tuned", "gptaq_tuned", "gptq_tuned", "guided_gptaq", "gptaq",
    "gptq",
)  # fmt: skip
#: Peers' pipelines without which nothing is said of a size.
NEEDED = {"3.25": ("autoround200",), **dict.fromkeys(BUDGETS[1:], ("autoscheme200", "modelopt"))}
#: Most telling first: a run that is stopped has these.
ORDER = (
    "autoround200@3.25", "gptq@3.25", "gptaq@3.25", "gptq_tuned@3.25", "gptaq_tuned@3.25",
    "guided@3.25", "guided_tuned@3.25", "gptaq_blocks_tuned@3.25", "autoscheme200@3.5",
    "exchanged@3.5", "exchanged_tuned@3.5", "exchanged_guided_tuned@3.5", "exchanged_gptaq_tuned@3.5", "whole@3.25",
    "llmcompressor@3.25", "gptqmodel@3.25", "gptqmodel_gptaq@3.25", "gptq_bf16@3.25", "llmcompressor_bf16@3.25",
    "gptqmodel_bf16@3.25", *(f"{name}@{mixture}" for mixture in MIXTURES for name in ("llamacpp", "gguf")),
)  # fmt: skip
QUICK = ("gptq@3.25", "gptaq@3.25", "autoround20@3.25")


def jobs(quick: bool, draws: int) -> list[str]:
    """All jobs in their order."""
    if quick:
        return list(QUICK)
    every = [f"{name}@{size}" for size in (*BUDGETS, *MIXTURES) for name, one in PIPELINES.items() if size in one.sizes]
    first = [name for name in dict.fromkeys([*ORDER, *every]) if name not in QUICK or name in ORDER]
    return [*first, *(f"{name}#{draw}" for draw in range(1, draws) for name in first if "llamacpp" not in name)]


class Job(NamedTuple):
    """One job, from its name. Raises SystemExit for names that there are not."""

    name: str
    size: str
    draw: int

    @property
    def pipeline(self) -> Pipeline:
        return PIPELINES[self.name]

    @classmethod
    def parse(cls, text: str) -> Job:
        name, _, rest = text.partition("@")
        size, _, draw = rest.partition("#")
        if name not in PIPELINES or size not in PIPELINES[name].sizes or not (draw or "0").isdigit():
            known = ", ".join(f"{each}@{{{','.join(one.sizes)}}}" for each, one in PIPELINES.items())
            raise SystemExit(f"no such job: {text}; there are {known}, each with #DRAW behind it if need be")
        return cls(name, size, int(draw or 0))
