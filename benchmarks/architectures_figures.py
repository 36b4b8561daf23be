"""What architectures.py measures of each architecture, on tiny models of tests/architectures.py."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machine
import torch

_TESTS = Path(__file__).parents[1] / "tests"
# Before this folder, whose architectures.py is another one.
sys.path[:0] = [str(_TESTS), str(_TESTS / "importance")]

SEQUENCES, TOKENS = 6, 24


def totals(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of all rows together."""
    codes = sum(row["gptq_codes"] for row in rows.values())
    return {
        "architectures": len(rows),
        "attribution_max_rel_error": max(row["attribution_rel_error"] for row in rows.values()),
        "gptq_codes_equal": sum(row["gptq_codes_equal"] for row in rows.values()) / codes,
        "dense_logits_max_diff": max(row["dense_logits_diff"] for row in rows.values()),
        "roundtrip_failures": sum(row["roundtrip_failed"] for row in rows.values()),
        "resume_differences": sum(row["resume_differs"] for row in rows.values()),
    }


def row(name: str, *, quick: bool = False) -> dict[str, Any]:
    """Figures of one architecture; ``gptq_codes``: how many were compared, ``gptq_codes_equal``: how many are equal."""
    import architectures

    samples = torch.randint(3, 300, (SEQUENCES // (2 if quick else 1), TOKENS), generator=_generator(4))
    path, error = attribution(architectures.model_of(name), quick=quick)
    equal, count = codes(architectures.model_of(name), samples)
    with tempfile.TemporaryDirectory(prefix="architectures-") as folder:
        stored = checkpoints(architectures.model_of(name), samples, Path(folder))
    return {
        "class": type(architectures.model_of(name)).__name__,
        "attribution": path,
        "attribution_rel_error": error,
        "gptq_codes": count,
        "gptq_codes_equal": equal,
        **stored,
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _dtype(model: Any) -> torch.dtype:
    """float64; XGLM computes in float32 at most."""
    return torch.float32 if model.config.model_type == "xglm" else torch.float64


def attribution(original: Any, *, quick: bool) -> tuple[str, float]:
    """The path of a model, and the largest relative error of its spans' gradients."""
    from reference import attributed, layout_of, relative_error
    from unmodified import Wide, full_backpropagation, model_in_float64

    from mixprec.importance.paths import path_of
    from mixprec.importance.windows import Window
    from mixprec.models.experts import unstack
    from mixprec.walk.blocks import Live

    windows = [Window(0, 0, 6), Window(2, 8, 21), Window(0, 6, 8), Window(3, 12, 24)][: 2 if quick else None]
    tokens = torch.randint(3, 300, (TOKENS,), generator=_generator(5))
    theirs = model_in_float64(original, _dtype(original))
    ours = copy.deepcopy(theirs)
    unstack(ours)
    layout = layout_of(ours)
    errors = []
    with Wide():
        path = path_of(Live(ours)).path
        found = attributed(ours, layout, tokens, torch.ones(1, TOKENS), windows, chunk_tokens=10, batch_tokens=12)
        for window, gradients in zip(windows, found.gradients, strict=True):
            expected = full_backpropagation(theirs, list(layout.modules), tokens, window)
            parts = [expected.get(key, torch.zeros(s.stop - s.start)).to(gradients) for key, s in layout.slices.items()]
            errors.append(relative_error(gradients, torch.cat(parts)))
    return path, max(errors)


def checkpoints(original: Any, samples: torch.Tensor, folder: Path) -> dict[str, Any]:
    """What compressed checkpoints are worth: logits, names, untouched tensors, and bytes after a stop."""
    from safetensors.torch import load_file
    from tiny import tokenizer

    from mixprec.calibration.data import Calibration
    from mixprec.compress.live import compress_live
    from mixprec.compress.stream import compress
    from mixprec.models.model import Model

    original.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    model, calibration = Model(folder / "model"), Calibration(samples, None, {}, "tokens")
    plan = _plan(model)
    compress(model, plan, folder / "out", calibration=calibration)
    theirs = type(original).from_pretrained(folder / "out").eval()
    inside = type(original).from_pretrained(folder / "model").eval()
    compress_live(inside, plan, calibration=calibration)
    with torch.no_grad():
        difference = (theirs(input_ids=samples).logits - inside(input_ids=samples).logits).abs().max()
    before, after = (load_file(folder / each / "model.safetensors") for each in ("model", "out"))
    planned = {model.source.stored(linear.weight_name) for linear in model.decoder.linears}
    changed = {key for key in before if not before[key].equal(after.get(key, before[key][:0]))}
    second = f"{model.decoder.blocks[1].path}."

    def stop(address: str, _report: Any) -> None:
        if address.startswith(second):
            raise KeyboardInterrupt

    try:
        compress(model, plan, folder / "again", calibration=calibration, on_module=stop)
    except KeyboardInterrupt:
        compress(model, plan, folder / "again", calibration=calibration)
    names = sorted(path.name for path in (folder / "out").iterdir())
    same = all((folder / "out" / each).read_bytes() == (folder / "again" / each).read_bytes() for each in names)
    return {
        "dense_logits_diff": float(difference),
        "roundtrip_failed": int(before.keys() != after.keys() or not changed <= planned or not changed),
        "resume_differs": int(not same),
    }


def _plan(model: Any) -> Any:
    import mixprec as mp

    return mp.plan(model, "w3g16", method="gptq").content


def codes(original: Any, samples: torch.Tensor) -> tuple[int, int]:
    """How many codes of the first block equal the loop's, and how many were compared, all in float64."""
    from architectures_gptq import expected_weights

    from mixprec.calibration.data import Calibration
    from mixprec.compress.live import compress_live
    from mixprec.compress.options import ExpertOptions, SolveOptions
    from mixprec.models.experts import unstack
    from mixprec.models.weights import linears_of
    from mixprec.plan.schema import Plan

    theirs = original.to(_dtype(original)).requires_grad_(False)
    if theirs._can_set_experts_implementation():
        theirs.set_experts_implementation("eager")  # grouped products want at most float32
    ours = copy.deepcopy(theirs)
    options = SolveOptions(experts=ExpertOptions(tokens="routed"))
    plan = Plan.model_validate(_uniform(ours))
    reports = compress_live(ours, plan, calibration=Calibration(samples, None, {}, "tokens"), options=options)
    unstack(ours)
    found = linears_of(ours)
    equal = count = 0
    for address, (weight, step) in expected_weights(theirs, samples, options).items():
        if not reports[address].fallback:
            near = (found[address].weight - weight).abs() < step / 4
            equal, count = equal + int(near.sum()), count + near.numel()
    return equal, count


def _uniform(model: Any) -> dict[str, Any]:
    """All linears of a model in three bits by GPTQ."""
    from mixprec.models.weights import map_in

    modules = {linear.address: {"format": "w3g16"} for linear in map_in(model).linears}
    return {"model": "tiny", "method": "gptq", "modules": modules}


def time_ratio(times: int) -> float:
    """CPU time of compressing a block of experts over that of a dense one with as many weights; the best of each."""
    hidden, width, experts = 256, 128, 8
    sizes = {"hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 8, "head_dim": 32}
    mixture = {**sizes, "moe_intermediate_size": width, "num_experts": experts, "decoder_sparse_step": 1}
    dense = {**sizes, "intermediate_size": width * experts}
    samples = torch.randint(3, 300, (16, 128), generator=_generator(8))
    return _fastest("qwen3_moe", mixture, samples, times) / _fastest("qwen3", dense, samples, times)


def _fastest(name: str, sizes: Mapping[str, Any], samples: torch.Tensor, times: int) -> float:
    from architectures import model_of

    from mixprec.calibration.data import Calibration
    from mixprec.compress.live import compress_live
    from mixprec.plan.schema import Plan

    taken: list[float] = []
    for _ in range(times):
        model = model_of(name, **sizes).requires_grad_(False)
        plan, calibration = Plan.model_validate(_uniform(model)), Calibration(samples, None, {}, "tokens")
        taken.append(machine.timed(lambda: compress_live(model, plan, calibration=calibration)))  # noqa: B023
    return min(taken)
