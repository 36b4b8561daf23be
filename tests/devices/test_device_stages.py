"""Whole stages on another device: they run, and come to what they come to on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from second_device import second_device

from mixprec import pipeline
from mixprec import recipe as recipes
from mixprec.compress import folding
from mixprec.evaluate import fidelity, passages, reference
from mixprec.evaluate.engines.base import Request, Sampling
from mixprec.evaluate.engines.transformers import TransformersEngine
from mixprec.importance import artifact
from mixprec.models.head import Head
from mixprec.models.model import Model
from mixprec.plan.sensitivity import parse_choice

#: How far KL may differ where sums in another order may turn a code of a few thousand.
CODES = 0.2
#: Widths that all packed formats hold.
SHAPE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
#: Method -> what a plan may say of a module, and what else a table of sensitivity may hold.
CHOICES = {
    "rtn": ("w3g32", "w4g32"),
    "gptq": ("w3g32", "w4g32"),
    "gptaq": ("w3g32", "w4g32"),
    "awq": ("w3g32", "w4g32"),
    "anyk": ("any3g32", "any4g32"),
    "ggml": ("q4_0", "q8_0"),
    "sparsegpt": ("w4g32@0.5", "0.5"),
    "wanda": ("2:4", "0.5"),
    "magnitude": ("0.25", "0.5"),
}


def but_slow(names: Iterable[str], *quick: str) -> list[Any]:
    """All ``names``, those that aren't ``quick`` as slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("devices") / "model", steps=20, **SHAPE)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_traces(tmp_path_factory.mktemp("traces") / "traces.jsonl")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)


def run(folder: Path, model: Path, calibration: Path, on: str, method: str = "rtn", **parts: Any) -> dict[str, Any]:
    """Run a recipe on a device, in ``folder``/device; returns its summary."""
    data = {
        "model": {"id": str(model), "device": on},
        "compress": {"method": method, "calibration": {"traces": str(calibration), "samples": 4, "tokens": 24}},
        "evaluate": {"text": "bundled:held_out", "text_tokens": 32, "text_passages": 2},
    }
    path = folder / f"{on}.yaml"
    path.write_text(yaml.safe_dump(data | parts), encoding="utf-8")
    return pipeline.Run(recipes.load(path), path.read_text(), "recipe", folder / on, None).run()


def plan(choice: str) -> dict[str, Any]:
    """All modules but one in ``choice``."""
    found = parse_choice(choice)
    sparsity = {} if found.sparsity is None else {"sparsity": str(found.sparsity)}
    return {"default": str(found.format), **sparsity, "rules": [{"match": "1_q", "format": "keep"}]}


def kl(summary: dict[str, Any]) -> float:
    (row,) = summary["variants"].values()
    return float(row["kl_mean"])


@pytest.mark.parametrize("method", but_slow(CHOICES, "gptq", "ggml", "wanda"))
def test_compress(device: str, model: Path, traces: Path, tmp_path: Path, method: str) -> None:
    parts = {"plan": plan(CHOICES[method][0])}
    found, expected = (run(tmp_path, model, traces, on, method=method, **parts) for on in (device, "cpu"))
    assert kl(found) == pytest.approx(kl(expected), rel=CODES)
    assert kl(found) > 0


@pytest.mark.parametrize("method", but_slow(["gptaq", "rtn"], "rtn"))
def test_tuning_blocks(device: str, model: Path, traces: Path, tmp_path: Path, method: str) -> None:
    calibration = {"traces": str(traces), "samples": 4, "tokens": 24}
    tuned = {"steps": 8, "batch": 2, "validation": 2, "reach": 0.3, "rate": 0.02, "dtype": "float32"}
    parts = {
        "plan": plan(CHOICES[method][0]),
        "compress": {"method": method, "calibration": calibration, "tune_blocks": tuned},
    }
    found, expected = (run(tmp_path, model, traces, on, **parts) for on in (device, "cpu"))
    assert kl(found) == pytest.approx(kl(expected), rel=CODES)
    quality = json.loads((tmp_path / device / "variants" / "compressed" / "quality.json").read_text())
    assert quality["model.layers.0.mlp.up_proj"]["tuned"] < (1 if method == "rtn" else 1.1)


@pytest.mark.parametrize("method", but_slow(["gptq", "anyk", "ggml"], "gptq"))
def test_tuning(device: str, model: Path, traces: Path, tmp_path: Path, method: str) -> None:
    calibration = {"traces": str(traces), "samples": 4, "tokens": 24}
    tuned = {"validation": 2, "rate": 0.002, "epochs": 1, "dtype": "float32"}
    parts = {
        "plan": plan(CHOICES[method][0]),
        "compress": {"method": method, "calibration": calibration, "tune": tuned},
    }
    for on in (device, "cpu"):
        run(tmp_path, model, traces, on, **parts)
    found, expected = (
        json.loads((tmp_path / on / "variants" / "compressed" / "tune.json").read_text()) for on in (device, "cpu")
    )
    assert [kl for _, kl in found["validation"]] == pytest.approx([kl for _, kl in expected["validation"]], rel=0.05)


@pytest.mark.parametrize("form", but_slow(["compressed-tensors", "gptq", "gguf"], "compressed-tensors"))
def test_packing(device: str, model: Path, traces: Path, tmp_path: Path, form: str) -> None:
    parts = {"plan": {"default": "w4g32"}, "checkpoint": {"format": form}}
    for on in (device, "cpu"):
        run(tmp_path, model, traces, on, **parts)
    there, here = (tmp_path / on / "variants" / "compressed" / "checkpoint" for on in (device, "cpu"))
    weights = [path.name for path in here.iterdir() if path.suffix in (".safetensors", ".gguf")]
    assert weights
    for name in weights:  # each weight is rounded by itself
        assert (there / name).read_bytes() == (here / name).read_bytes()


@pytest.mark.parametrize("method", but_slow(["gptq", "awq", "sparsegpt"], "gptq"))
def test_sensitivity_ablation_and_exchange(device: str, traces: Path, tmp_path: Path, method: str) -> None:
    model = tiny.write_checkpoint(tmp_path / "model", steps=20, **SHAPE, num_hidden_layers=1)
    choices = list(CHOICES[method])
    exchange = {"samples": 2, "proposals": 1}
    budget = {"effective_bits": 10, "candidates": [*choices, "keep"], "exchange": exchange}
    parts = {
        "sensitivity": {"scorer": "fisher", "formats": choices, "samples": 1, "at": "path", "base": choices[0]},
        "ablation": {"each": "1_q", "sets": {"all": "*_*"}, "formats": choices},
        "variants": {"spent": {"plan": {"budget": budget}}},
    }
    for on in (device, "cpu"):
        run(tmp_path, model, traces, on, method=method, **parts)

    def both(name: str) -> list[Any]:
        return [json.loads((tmp_path / on / name).read_text()) for on in (device, "cpu")]

    for scorer in ("fisher", "first_order", "output_error", "weight_error"):
        there, here = both(f"sensitivity/{scorer}.json")
        for address, row in here["scores"].items():
            assert there["scores"][address] == pytest.approx(row, rel=0.1, abs=1e-6)
    there, here = both("ablation/ablation.json")
    for one, other in zip(there["cells"], here["cells"], strict=True):
        assert one["kl"]["all"]["mean"] == pytest.approx(other["kl"]["all"]["mean"], rel=0.1, abs=1e-6)


@pytest.mark.parametrize("stream", [False, True])
def test_importance(device: str, model: Path, traces: Path, tmp_path: Path, stream: bool) -> None:
    parts = {
        "traces": {"source": str(traces)},
        "importance": {"compare": ["released"], "beyond_linear": True, "stream": stream},
        "evaluate": {"traces": {"source": str(traces)}},
    }
    for on in (device, "cpu"):
        run(tmp_path, model, traces, on, **parts)
    for name in ("importance.json", "importance_released.json", "importance_beyond.json"):
        there, here = (artifact.scores_of(artifact.load(tmp_path / on / "importance" / name)) for on in (device, "cpu"))
        assert here
        for behaviour, scores in here.items():
            assert there[behaviour] == pytest.approx(scores, rel=1e-2, abs=1e-5)


def test_predictions_that_are_kept(device: str, model: Path, tmp_path: Path) -> None:
    there, here = (Model(model, device=on).load() for on in (device, "cpu"))
    text = passages.from_text("bundled:held_out", here.encoder, 32)[:2]
    for name, loaded in (("there", there), ("here", here)):
        states = fidelity.hidden_states(loaded, text, "predictions")
        reference.save(tmp_path / name, text, states, Head.of(loaded.model), "x", 16)
    states = fidelity.hidden_states(there, text, "evaluate")
    known = reference.load(tmp_path / "here", text)
    found = reference.compare(text, states, Head.of(there.model), known)
    assert max(float(each.kl.max()) for each in found) < 1e-3


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generation(device: str, model: Path, temperature: float) -> None:
    asked = [Request(str(number), text, number) for number, text in enumerate(["There were", "Wait, that is", "Two"])]
    sampling = Sampling(max_new_tokens=8, temperature=temperature)
    there, here = (
        list(TransformersEngine(Model(model, device=on).load(), 2).generate(asked, sampling)) for on in (device, "cpu")
    )
    assert there == here


def test_a_tensor_on_the_wrong_device_is_caught(
    model: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = folding.tie
    monkeypatch.setattr(folding, "tie", lambda *given: None if (made := right(*given)) is None else made.cpu())
    with second_device() as name, pytest.raises(RuntimeError, match="all tensors must be on one device"):
        run(tmp_path, model, traces, name, method="awq", plan=plan("w3g32"))
