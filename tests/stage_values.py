"""Small results of every stage, and the numbers of the rules that they were made by (tests/rules.json).

python tests/stage_values.py     # writes rules.json again, after a stage's RULES were raised

Values are compared with tolerances, since processors with other vector units round otherwise. Inputs come from no
generator of random numbers, whose draws differ between processors and versions. What is compressed is small: few codes
lie so near the middle of two values that they fall one way here and the other way there.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from mixprec import pipeline
from mixprec import recipe as recipes
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress import spectra
from mixprec.compress.methods import solve
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.evaluate.benchmarks.schema import Kind, Question
from mixprec.evaluate.scoring import score
from mixprec.models import locate
from mixprec.models.model import Model
from mixprec.numerics import updates
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import dequantize, quantize
from mixprec.numerics.statistics import InputSums
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Treatment
from mixprec.tune.rounding import Rounding

FILE = Path(__file__).with_name("rules.json")
#: Stage -> where its RULES are, and how far a value may be off, as a part of the largest of its list.
STAGES: Mapping[str, tuple[str, float]] = {
    "annotate": ("mixprec.traces", 0.0),
    "attribute": ("mixprec.importance", 2e-3),
    "compress": ("mixprec.compress", 1e-4),
    "conversion": ("mixprec.models.conversion", 1e-3),
    "evaluate": ("mixprec.evaluate", 2e-3),
    "exchange": ("mixprec.joint", 5e-3),
    "scoring": ("mixprec.evaluate.scoring", 0.0),
    "sensitivity": ("mixprec.sensitivity", 5e-3),
    "spectra": ("mixprec.compress.spectra", 1e-3),
    "tune": ("mixprec.tune", 1e-3),
    "updates": ("mixprec.compress.updates", 1e-5),
}
#: Of the weights that methods make so many may be others.
FLIPPED = 0.02
METHODS: Mapping[str, Mapping[str, str]] = {
    "rtn": {"format": "w3g16"},
    "gptq": {"format": "w3g16"},
    "gptaq": {"format": "w3g16"},
    "awq": {"format": "w3g16_asym"},
    "anyk": {"format": "any3g16"},
    "ggml": {"format": "q4_0"},
    "sparsegpt": {"format": "w4g16", "sparsity": "2:4"},
    "wanda": {"format": "keep", "sparsity": "0.5"},
    "magnitude": {"format": "keep", "sparsity": "0.5"},
}
TEXTS = ["w2g16", "w3g16", "w4g16"]
BUDGET = {"effective_bits": 4.0, "candidates": TEXTS}

Values = dict[str, list[float]]


def rules(stage: str) -> int:
    """The present number."""
    return int(importlib.import_module(STAGES[stage][0]).RULES)


def pattern(*shape: int, seed: float = 0.0) -> Tensor:
    """Numbers without a pattern from -1 to 1, the same everywhere, in float32."""
    found = [math.modf(abs(math.sin(12.9898 * n + seed) * 43758.5453))[0] * 2 - 1 for n in range(math.prod(shape))]
    return torch.tensor(found, dtype=torch.float64).reshape(shape).float()


def all_values(folder: Path) -> dict[str, Values]:
    """Stage -> name -> values, made in ``folder``."""
    model = _model(folder / "model")
    out = _run(folder, model)
    return {
        "annotate": _annotated(out / "spans.jsonl"),
        "attribute": _attributed(out / "importance" / "importance.json"),
        "compress": compressed(),
        "conversion": _converted(folder, model),
        "evaluate": _numbers(artifacts.read_json(out / "variants" / "pruned" / "result.json")),
        "exchange": _exchanged(out / "variants" / "ours" / "exchange" / "exchange.json"),
        "scoring": _scored(),
        "sensitivity": _tables(out / "sensitivity"),
        "spectra": {"alphas": _rounded(spectra.alphas(Model(str(model))).values())},
        "tune": {"rounding": _rounding()},
        "updates": {"channels": _updated()},
    }


def _model(folder: Path) -> Path:
    loaded = tiny.build("llama", intermediate_size=64)
    with torch.no_grad():
        for number, (name, weight) in enumerate(loaded.model.named_parameters()):
            values = pattern(*weight.shape, seed=float(number))
            weight.copy_(1 + 0.2 * values if "norm" in name else 3 * values / weight.shape[-1] ** 0.5)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def _run(folder: Path, model: Path) -> Path:
    traces = folder / "traces.jsonl"
    artifacts.write_jsonl(traces, tiny.TRACES)
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    exchange = {"samples": 3, "proposals": 4, "margin": 0}
    data = {
        "model": {"id": str(model)},
        "traces": {"source": str(traces)},
        "importance": {"preset": "paper", "compare": ["released"]},
        "sensitivity": {"scorer": "fisher", "formats": TEXTS, "samples": 3},
        "variants": {
            "ours": {"plan": {"budget": {**BUDGET, "exchange": exchange}}},
            "pruned": {"plan": {"default": "keep", "sparsity": 0.5, "method": "magnitude"}},
        },
        "compress": {"method": "rtn", "calibration": {"traces": str(traces), "samples": 6, "tokens": 24}},
        "evaluate": {"traces": {"source": str(traces)}, "text": str(folder / "text.txt"), "text_tokens": 32},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    pipeline.Run(recipes.load(path), path.read_text(encoding="utf-8"), "recipe", folder / "out", None).run()
    return folder / "out"


def compressed() -> Values:
    """The weights that each method makes of one small weight."""
    weight, inputs = pattern(8, 32), pattern(96, 32, seed=1.0)
    inputs = (inputs + 0.5 * inputs.roll(1, 1)) * (1 + pattern(32, seed=2.0).square() * 4)
    sums = InputSums(32, drift=True)
    sums.add(inputs, None, inputs + 0.1 * pattern(96, 32, seed=3.0))
    made = GroupInputs(sums.result(), SolveOptions())
    found = {}
    for method, how in METHODS.items():
        treatment = Treatment.model_validate({**how, "method": method})
        address = "model.layers.0.mlp.up_proj"
        solved = solve({address: weight}, {address: treatment}, made, SolveOptions())[address]
        found[method] = _rounded(solved.restored.flatten().tolist())
    return found


def _rounding() -> list[float]:
    """A weight on the way that tuning a block takes it."""
    weight, format = pattern(8, 32), Format(3, 16)
    start = quantize(weight, format, torch.float16)
    moving = Rounding(start, format, rests=weight - dequantize(start, format, torch.float32))
    for number in range(5):
        moving.step(moving.weight(torch.float32), pattern(8, 32, seed=4.0 + number), move=0.05, rate=0.01)
    return _rounded(moving.weight(torch.float32).flatten().tolist())


def _updated() -> list[float]:
    """Importance of channels by updates of which every third is zero."""
    moved = pattern(7, 9, seed=0.5).abs() * (torch.arange(63).reshape(7, 9) % 3 > 0)
    of = updates.extent(lambda: [moved])
    return _rounded(updates.importance([updates.channel_sums(moved, of)]).tolist())


def _annotated(path: Path) -> Values:
    rows = artifacts.read_jsonl(path)
    spans = [[number for span in row["spans"] for number in (span["start"], span["end"])] for row in rows]
    return {f"trace {number}": [float(each) for each in found] for number, found in enumerate(spans)}


def _attributed(path: Path) -> Values:
    found = artifacts.read_json(path)["behaviours"]
    return {behaviour: _rounded(entry["scores"]) for behaviour, entry in found.items() if entry["spans"]}


def _tables(folder: Path) -> Values:
    scores = {path.stem: artifacts.read_json(path)["scores"] for path in sorted(folder.glob("*.json"))}
    return {name: _rounded([v for row in table.values() for v in row.values()]) for name, table in scores.items()}


def _exchanged(path: Path) -> Values:
    found = artifacts.read_json(path)
    return {"kl": _rounded([found["kl_start"], found["kl_end"]])}


def _converted(folder: Path, model: Path) -> Values:
    opened = Model(str(model))
    plan = build_plan(PlanSpec.model_validate({"default": "q4_0"}), opened.decoder, str(model), "ggml")
    compress(opened, plan, folder / "gguf", format=checkpoint_format("gguf"))
    alone = shutil.copy(folder / "gguf" / "model.gguf", folder / "alone.gguf")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MIXPREC_CACHE", str(folder / "cache"))
        found = [load_file(path) for path in sorted(Path(locate.resolve(str(alone))).glob("*.safetensors"))]
    tensors = {name: tensor.double() for part in found for name, tensor in part.items()}
    return {name: _rounded([float(w.mean()), float(w.square().mean())]) for name, w in sorted(tensors.items())}


#: Kind of question, its right answer, an output.
_OUTPUTS: tuple[tuple[Kind, str, str], ...] = (
    ("integer", "33", "So it is 33.\n</think>\n\nThe answer is \\boxed{33}."),
    ("integer", "33", "I think it is 33, or 34"),
    ("truth", "Uncertain", "Hm.\n</think>\n\nThe conclusion can't be determined, so it is **uncertain**."),
    ("truth", "True", "It is true.\n</think>\n\nThe conclusion is not true."),
    ("letter", "B", "Six to nine.\n</think>\n\nThe answer is (B)."),
    ("words", "Apple Corps", "It was them.\n</think>\n\nApple Corps."),
    ("words", "Apple Corps", "It was them.\n</think>\n\nThe label, Apple Corps of London."),
)


def _scored() -> Values:
    options = {"options": {"A": "3pm to 5pm", "B": "6pm to 9pm"}, "conclusion": "It rains."}
    found = {}
    for number, (kind, answer, output) in enumerate(_OUTPUTS):
        verdict = score(Question("1", "any", kind, "Which?", "Which?", answer, extra=options), output)
        found[f"{number} {kind}"] = [verdict.em, verdict.f1, float(verdict.outcome == "none")]
    return found


def _numbers(data: Any, name: str = "") -> Values:
    """All numbers of a JSON object, by the keys that lead to them."""
    if isinstance(data, dict):
        return {k: v for key, value in data.items() for k, v in _numbers(value, f"{name}.{key}".strip(".")).items()}
    if isinstance(data, list):
        return {k: v for n, value in enumerate(data) for k, v in _numbers(value, f"{name}.{n}").items()}
    return {name: _rounded([float(data)])} if isinstance(data, int | float) else {}


def _rounded(values: Iterable[float]) -> list[float]:
    """Six digits are more than is compared."""
    return [float(f"{value:.6g}") for value in values]


def off(stage: str, known: Values, found: Values) -> list[str]:
    """The names whose values differ by more than the stage's tolerance."""
    return [
        name
        for name in sorted(known.keys() | found.keys())
        if not _close(stage, known.get(name, []), found.get(name, []))
    ]


def _close(stage: str, known: list[float], found: list[float]) -> bool:
    if len(known) != len(found):
        return False
    allowed = STAGES[stage][1] * max((abs(value) for value in known), default=0.0)
    others = sum(abs(a - b) > allowed for a, b in zip(known, found, strict=True))
    return others <= (FLIPPED * len(known) if stage == "compress" else 0)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = all_values(Path(folder))
    before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for stage, values in found.items():
        known = before.get(stage)
        if known and known["rules"] == rules(stage) and off(stage, known["values"], values):
            sys.exit(f"{stage}: other results, but RULES in {where(stage)} is still {rules(stage)}; raise it first")
    data = {stage: {"rules": rules(stage), "values": values} for stage, values in found.items()}
    FILE.write_text(json.dumps(data, indent=1).replace("\n    ", " ").replace("\n   ]", "]") + "\n", encoding="utf-8")
    print(f"{FILE.name}: rules { ({stage: rules(stage) for stage in data}) }")


def where(stage: str) -> str:
    """The file that holds a stage's RULES."""
    return str(Path(str(importlib.import_module(STAGES[stage][0]).__file__)).relative_to(FILE.parents[1]))


if __name__ == "__main__":
    main()
