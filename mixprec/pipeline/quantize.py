"""The usual job as a recipe: calibrate, score, plan under a budget, check the runtime, compress, evaluate.

Defaults are what benchmarks/allocation.py and benchmarks/scoring.py measured best (docs/quantize.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mixprec.calibration import data
from mixprec.calibration.diagnosis import ENOUGH
from mixprec.calibration.spec import CalibrationSpec
from mixprec.checkpoint import check as checking
from mixprec.checkpoint.facts import RUNTIMES
from mixprec.checkpoint.runtimes import device_of, loader
from mixprec.core.errors import UserError, from_pydantic, near
from mixprec.core.parsing import dump_yaml
from mixprec.models.model import Model
from mixprec.numerics.formats import Format, GgmlFormat
from mixprec.plan.budget import reach
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.methods import METHODS, guidable
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.recipe import Recipe
from mixprec.traces.store import HELD_OUT

#: Widths that were measured as candidates (benchmarks/allocation.py), and those of llama.cpp's types about as wide.
_WIDTHS = (2, 3, 4, 5, 6, 8)
_TYPES = ("iq2_xxs", "iq2_s", "iq3_xxs", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")
#: Weights that share a scale: the largest of these that divides all rows.
_GROUPS = (128, 64, 32)
#: Passages that damage is predicted on: 16 change the KL of the plan by a hundredth of itself (docs/allocation.md).
_SCORED = 8
#: Below these effective bits measured exchanges lower the KL (0.94 of it at 3.25 bits; nothing at 3.5 and 4.0).
_EXCHANGE = 3.5
_TOKENS = 512
#: Further samples that decide when tuning stops.
_VALIDATION = 4
Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True)
class Job:
    """What is asked for: effective ``bits`` of the linears, or ``file_mb``, 10^6 bytes of the whole file, embedding and
    head included. ``protect``: selectors of modules that are kept; ``method`` None: the runtime's best.

    ``traces``, ``text``: calibration data, by default the bundled traces; ``samples`` of 512 tokens, by default enough
    for the widest layer, or all that there are. ``held_out``: traces that the result is measured on.
    ``device``: where the runtime works, cpu, apple or a generation of GPUs; None: the one it is made for.
    ``tune``: scales and norms at the end.
    """

    model: Model
    bits: float | None
    runtime: str
    file_mb: float | None = None
    protect: Sequence[str] = ()
    method: str | None = None
    traces: str | None = None
    text: str | None = None
    samples: int | None = None
    held_out: str = HELD_OUT
    device: str | None = None
    version: str | None = None
    base_model: str | None = None
    tune: bool = False

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.file_mb is None):
            raise UserError("bits: give bits or file_mb, the size of the whole file in 10^6 bytes: one of the two")
        for name, value in {"bits": self.bits, "file_mb": self.file_mb}.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} {value:g}: give a number above 0, such as {3.5 if name == 'bits' else 100}")

    @property
    def size(self) -> str:
        """In words."""
        return f"{self.file_mb:g} MB" if self.bits is None else f"{self.bits:g} bits"


def recipe_of(job: Job) -> Recipe:
    """The recipe of a job. Reads the model's configuration, its tokenizer and the calibration data, no weights.

    Raises UserError for a runtime that is unknown, a method that it has no formats of, bits that these can't reach
    (with the nearest that they can), selectors that match nothing, and calibration data that is missing. What is wrong
    with an argument of ``mixprec.quantize`` begins with its name.
    """
    if job.runtime not in RUNTIMES:
        raise UserError(f"runtime: {job.runtime!r} is none of {', '.join(RUNTIMES)}{near(job.runtime, RUNTIMES)}")
    try:
        loader(job.runtime, "dense", job.version, job.device)
    except UserError as problem:  # of device or version: the model's device is where mixprec computes
        raise UserError(f"runtime_{problem}") from None
    format = RUNTIMES[job.runtime].format
    llama_cpp = format == "gguf"
    method = _method(job, llama_cpp)
    formats = _loaded(job, format, method)
    outside = [] if job.file_mb is None else _outside(job, formats, format)
    budget = _budget(job, formats, format, outside)
    calibration = _calibration(job)
    scored = min(_SCORED, calibration["samples"])
    left = calibration["samples"] - scored
    if job.bits is not None and job.bits < _EXCHANGE and left >= 2 and not llama_cpp:
        budget["exchange"] = {"samples": min(_SCORED, left), "stride": 4, "proposals": 20}
    base = _base(job, formats, outside)
    where = {"dtype": job.model.dtype, "device": job.model.device}
    words = {
        "title": f"{job.model.id} in {job.size} for {job.runtime}",
        "model": {"id": job.model.id, "revision": job.model.revision, **where, "base_model": job.base_model},
        "compress": {"method": method, "calibration": calibration, **_refined(job, method)},
        "sensitivity": {
            "scorer": "fisher", "formats": formats, "at": "compressed", "base": base, "samples": scored,
            **({"outside": outside} if outside else {}),
        },
        "variants": {
            "original": {"description": "the model as it is", "plan": {"default": "keep"}},
            "quantized": {"description": f"{job.size}, least damage", "plan": {"budget": budget}},
        },
        "checkpoint": {
            "format": format, "runtime": job.runtime, "version": job.version, "device": job.device
        },
        "evaluate": {
            "traces": {"source": job.held_out},
            **({"text": HELD_OUT, "text_passages": 4} if job.held_out == HELD_OUT else {}),
        },
    }  # fmt: skip
    return _valid(Recipe, words)


def _valid(kind: type[Kind], words: dict[str, Any]) -> Kind:
    try:
        return kind.model_validate(words)
    except ValidationError as problem:
        raise from_pydantic(problem, "mixprec quantize", kind) from None


def _method(job: Job, llama_cpp: bool) -> str:
    best = "ggml" if llama_cpp else "gptq"
    method = job.method or best
    record = METHODS.get(method)
    if record is None:
        raise UserError(f"method: {method!r} is none of {', '.join(METHODS)}{near(method, METHODS)}")
    wanted = GgmlFormat if llama_cpp else Format
    if record.prunes or wanted not in record.formats:
        raise UserError(
            f"method {method}: {job.runtime} loads no format of it packed; leave it out, which takes {best}"
        )
    return method


def _loaded(job: Job, format: str, method: str) -> list[str]:
    """The candidates that the runtime loads of this model, as text."""
    inventory, config = job.model.decoder, job.model.config
    if format == "gguf":
        return [name for name in _TYPES if _fits(name, job)]
    sizes = {module.in_features for module in inventory.linears}
    group = next((size for size in _GROUPS if all(width % size == 0 for width in sizes)), _GROUPS[-1])
    target = checking.Target(job.runtime, format, job.version, job.device)
    found, refused = [], ""
    for width in _WIDTHS:
        spec = _valid(PlanSpec, {"default": str(Format(width, group)), "method": method})
        plan = build_plan(spec, inventory, job.model.id, "rtn")
        verdict = checking.check(plan, inventory, config, target)
        refused = refused or verdict.whole or next(iter(verdict.refused.values()), "")
        found += [str(Format(width, group))] if verdict.loads else []
    if not found:
        raise UserError(f"runtime {target}: it loads no format of {job.model.id}: {refused}")
    return found


def _fits(name: str, job: Job) -> bool:
    """Whether some row is made of whole blocks of a type; the others take what llama.cpp falls back to."""
    return any(GgmlFormat(name).fits(module.in_features) for module in job.model.decoder.linears)


def _outside(job: Job, formats: Sequence[str], format: str) -> list[str]:
    """Which of embedding and head the runtime loads in all of these formats."""
    inventory, target = job.model.decoder, checking.Target(job.runtime, format, job.version, job.device)

    def loads(kind: str, name: str) -> bool:
        spec = _valid(PlanSpec, {"default": formats[-1], "rules": [{"match": kind, "format": name}]})
        plan = build_plan(spec, inventory, job.model.id, "ggml" if format == "gguf" else "rtn")
        return checking.check(plan, inventory, job.model.config, target).loads

    kinds = [module.kind for module in inventory.outside]
    return [kind for kind in kinds if all(loads(kind, name) for name in formats)]


def _limit(job: Job, outside: Sequence[str], whole: str = "file_bytes") -> dict[str, Any]:
    """How large the plan may be, as a budget says it; ``whole``: its measure of a whole file."""
    if job.file_mb is None:
        return {"effective_bits": job.bits}
    return {whole: round(job.file_mb * 1e6), **({"outside": list(outside)} if outside else {})}


def _budget(job: Job, formats: Sequence[str], format: str, outside: Sequence[str]) -> dict[str, Any]:
    """``plan.budget``; refused where these formats can't reach the bits. Whether they reach the bytes of a file is
    known when it is laid out: the recipe's checks say so."""
    fused = loader(job.runtime, format, job.version, job.device).fused
    few = ["keep"] if len(formats) == 1 else []
    words: dict[str, Any] = {
        **_limit(job, outside),
        "candidates": [*formats, *few],
        "pin": dict.fromkeys(job.protect, "keep"),
        **({"tie": "fused"} if fused else {}),
    }
    try:
        least, most = reach(_valid(BudgetSpec, words), job.model.decoder)
    except UserError as problem:
        told = str(problem).removeprefix("plan.budget.pin: ").replace("pin all", "protect all")
        raise UserError(f"protect: {told}") from None
    if job.bits is not None and not float(least) <= job.bits <= float(most):
        nearest = least if job.bits < float(least) else most
        kept = f" with {', '.join(job.protect)} kept" if job.protect else ""
        device = device_of(job.runtime, job.device)
        raise UserError(
            f"bits {job.bits:g}: {job.runtime} on {device} loads {', '.join(formats)} of this model, so that "
            f"plans{kept} take {least} to {most} effective bits; the nearest is {nearest}"
        )
    return words


def _base(job: Job, formats: Sequence[str], outside: Sequence[str]) -> str:
    """The format of the model that gradients are taken at: the largest that all modules fit the budget in."""
    # What a file has around its weights is little beside the difference of two formats.
    limit = _limit(job, outside, whole="bytes")

    def spec(name: str) -> BudgetSpec:
        return _valid(BudgetSpec, limit | {"candidates": [name, "keep"]})

    def least(name: str) -> Fraction:
        return Fraction(reach(spec(name), job.model.decoder)[0])

    fitting = [name for name in formats if least(name) <= spec(name).size]
    return max(fitting, key=least, default=min(formats, key=least))


def _calibration(job: Job) -> dict[str, Any]:
    traces = job.traces or (None if job.text else "bundled:attribution")
    sources = [{"traces": traces}] * bool(traces) + [{"text": job.text}] * bool(job.text)
    samples, model = job.samples, job.model
    if samples is None:
        spec = _valid(CalibrationSpec, {"sources": sources, "samples": len(sources), "tokens": _TOKENS})
        wanted = max(math.ceil(ENOUGH * model.decoder.widest_input / _TOKENS), 2 * _SCORED)
        # Where there is none, who draws them says why.
        available = data.available(spec, model.encoder, str) - (_VALIDATION if job.tune else 0)
        samples = min(wanted, max(len(sources), available))
    one = sources[0] if len(sources) == 1 else {"sources": sources}
    return {**one, "samples": samples, "tokens": _TOKENS}


def _refined(job: Job, method: str) -> dict[str, Any]:
    """What makes more of the same bits: solves guided by the loss, where the method can be, and tuning."""
    guided: dict[str, Any] = {"guided": {}} if guidable([method]) else {}
    return guided | ({"tune": {"validation": _VALIDATION}} if job.tune else {})


def text_of(chosen: Recipe, out: Path) -> str:
    """The recipe as a file, with the command that runs it in front."""
    words = chosen.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return f"# mixprec run {out / 'recipe.yaml'} --out {out}\n{dump_yaml(words)}"
