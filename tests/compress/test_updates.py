"""What fine-tuning changed, from two checkpoints to AWQ's scales, a scorer and a plan; bases that are none."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import mixprec as mp
from mixprec import pipeline, recipe
from mixprec.compress import updates
from mixprec.compress.awq import search_scale
from mixprec.core.errors import UserError
from mixprec.core.stages import Stages
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import Quantized, dequantize, encode, fit
from mixprec.numerics.statistics import InputStatistics


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In 16 bits, so that small updates are lost."""
    loaded = tiny.build()
    folder = tmp_path_factory.mktemp("base") / "base"
    loaded.model.bfloat16().save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base after updates most of which 16 bits don't hold."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    model, random = AutoModelForCausalLM.from_pretrained(base), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (1e-4 * torch.randn(parameter.shape, generator=random)).to(parameter)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mp.updates(base, tuned, tmp_path_factory.mktemp("updates") / "updates.safetensors")


def weights(folder: Path) -> dict[str, Tensor]:
    found = load_file(folder / "model.safetensors")
    return {name.removesuffix(".weight"): each for name, each in found.items() if "_proj" in name}


def test_the_file_is_what_a_loop_over_both_checkpoints_finds(base: Path, tuned: Path, made: Any) -> None:
    before, after = weights(base), weights(tuned)
    moved = {name: (after[name].double() - before[name].double()).abs() for name in after}
    positive = [float(each) for update in moved.values() for each in update.flatten() if each > 0]
    least, middle, most = min(positive), statistics.median(positive), max(positive)
    assert 0.2 < len(positive) / sum(update.numel() for update in moved.values()) < 0.8
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        found = updates.channels(made, [name])
        for column, value in enumerate(found.tolist()):
            each = moved[name][:, column].tolist()
            mapped = [
                1.0 if x == 0 else 1 + 9 * ((middle - x) / ((middle - least) if x <= middle else (middle - most))) ** 2
                for x in each
            ]
            expected = sum(mapped) / len(each) * (1 + sum(x == 0 for x in each))
            assert value == pytest.approx(expected, rel=1e-5)


def test_scales_are_powers_of_the_importance_and_the_loss_is_of_the_outputs() -> None:
    """Every ratio by a loop over tokens, in float64."""
    random = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((9, 12), (30, 12)))
    channels = torch.rand(12, generator=random, dtype=torch.float64) * 40 + 1
    known = InputStatistics(inputs.T @ inputs / 30, inputs.abs().mean(0), 30)
    format = Format(3, 4)
    found = search_scale([weight], [format], known, channels=channels, clipped=[False], grid=10)
    losses = {}
    for step in range(10):
        raw = [max(float(each) ** (step / 10), 1e-4) for each in channels]
        scale = torch.tensor([each / math.sqrt(max(raw) * min(raw)) for each in raw]).double()
        scaled = weight * scale
        grid = fit(scaled, format, search=None, column_weights=known.hessian.diagonal() / scale**2)
        delta = dequantize(Quantized(encode(scaled, grid, format), grid), format, torch.float64) / scale - weight
        losses[step / 10] = sum(float((delta @ x).square().sum()) for x in inputs) / 30
    best = min(losses, key=lambda ratio: losses[ratio])
    assert (found.family, found.ratio) == ("inputs", best)
    assert found.loss == pytest.approx(losses[best], rel=1e-4)
    torch.testing.assert_close(found.unnormalised.double(), channels**best, rtol=1e-5, atol=0)


def other_shapes(base: Path, folder: Path) -> None:
    tiny.write_checkpoint(folder, intermediate_size=40)


def other_layers(base: Path, folder: Path) -> None:
    tiny.write_checkpoint(folder, num_hidden_layers=1)


def other_words(base: Path, folder: Path) -> None:
    tiny.write_checkpoint(folder)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    words = told["model"]["vocab"]
    one, other = [word for word in words if len(word) > 2][-2:]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(told))


def the_same(base: Path, folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def a_stranger(base: Path, folder: Path) -> None:
    tiny.write_checkpoint(folder, seed=7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            other_shapes,
            r"other is not the base of .*base: model.layers.0.mlp.gate_proj has 40 × 32 and 48 × 32 weights",
        ),
        (other_layers, r"model.layers.1.self_attn.q_proj is in one of them only"),
        (other_words, r"their vocabularies differ"),
        (the_same, r"other and .*base have the same weights; take the checkpoint"),
        (a_stranger, r"their weights have nothing in common"),
    ],
)
def test_a_base_that_is_none_is_refused_by_name(
    change: Callable[[Path, Path], None], said: str, base: Path, tmp_path: Path
) -> None:
    change(base, tmp_path / "other")
    with pytest.raises(UserError, match=f"fine_tuned_from: .*{said}"):
        mp.updates(tmp_path / "other", base, tmp_path / "updates.safetensors")
    assert not (tmp_path / "updates.safetensors").exists()


def test_files_of_other_models_and_changed_ones_are_refused(base: Path, tuned: Path, made: Any, tmp_path: Path) -> None:
    data = tiny.write_traces(tmp_path / "traces.jsonl")
    calibration = mp.calibrate(base, traces=data, samples=2, tokens=32)
    plan = mp.plan(base, "w4g16", method="awq")
    with pytest.raises(UserError, match="updates of another model"):
        mp.compress(base, plan, tmp_path / "out", calibration=calibration, options=mp.SolveOptions(updates=made))
    changed = tmp_path / "changed.safetensors"
    save_file(load_file(made.path), changed)
    with pytest.raises(UserError, match="is not the file of updates that was made"):
        updates.channels(made.model_copy(update={"path": str(changed)}), ["model.layers.0.self_attn.k_proj"])


def test_a_recipe_scales_and_plans_by_what_fine_tuning_changed(
    base: Path, tuned: Path, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    keys: dict[str, Any] = {
        "model": {"id": str(tuned)},
        "compress": {
            "method": "awq",
            "calibration": {"traces": str(traces), "samples": 4, "tokens": 32},
            "fine_tuned_from": {"id": str(base)},
        },
        "sensitivity": {"scorer": "updates", "formats": ["w2g16", "w6g16"], "samples": 2},
        "variants": {
            "uniform": {"plan": {"default": "w3g16"}},
            "budget": {"plan": {"budget": {"code_bits": 4, "candidates": ["w2g16", "w6g16"]}}},
        },
    }
    path, out = tmp_path / "r.yaml", tmp_path / "run"

    def run(**change: Any) -> None:
        path.write_text(json.dumps(keys | change))
        pipeline.Run(recipe.load(path), path.read_text(), "r", out, None).run()

    run()
    assert load_file(out / "updates.safetensors").keys() == load_file(made.path).keys()
    card = json.loads((out / "variants/uniform/checkpoint/mixprec.json").read_text())
    assert set(card["compress"]["updates"]) == {"sha256"}  # no path of this machine

    # The scorer: each column's squared error, weighed by its importance.
    table = json.loads((out / "sensitivity/updates.json").read_text())
    calibration = mp.calibrate(tuned, traces=traces, samples=4, tokens=32)
    scores = mp.sensitivity(tuned, calibration, ["w2g16"], method="awq", scorer="updates", samples=2,
                            options=mp.SolveOptions(updates=made), out=tmp_path / "scores")  # fmt: skip
    address = "model.layers.1.mlp.up_proj"
    assert scores.main.scores[address]["w2g16"] == pytest.approx(table["scores"][address]["w2g16"], rel=1e-6)
    from mixprec.compress.candidatefiles import Candidates

    restored = Candidates(tmp_path / "scores/candidates", ["w2g16"], "").weight(address, "w2g16").double()
    error = (restored - weights(tuned)[address].double()).square()
    expected = sum(
        weight * sum(error[:, column].tolist())
        for column, weight in enumerate(updates.channels(made, [address]).tolist())
    )
    assert scores.main.scores[address]["w2g16"] == pytest.approx(expected, rel=1e-5)

    again: list[str] = []
    do = Stages.do
    monkeypatch.setattr(
        Stages, "do", lambda self, name, *rest: do(self, name, *rest[:-1], lambda: (again.append(name), rest[-1]()))
    )
    run()
    assert again == []
    plain = {key: value for key, value in keys["compress"].items() if key != "fine_tuned_from"}
    first = load_file(out / "variants/uniform/checkpoint/model.safetensors")
    run(compress=plain, sensitivity=None, variants={"uniform": keys["variants"]["uniform"]})
    assert again == ["compress/uniform"]  # by inputs' magnitudes, as AWQ is published
    other = load_file(out / "variants/uniform/checkpoint/model.safetensors")
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_what_nothing_looks_at_is_told(base: Path, tuned: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    keys = {
        "model": {"id": str(tuned)},
        "plan": {"default": "w4g16"},
        "compress": {"fine_tuned_from": {"id": str(base)}},
    }
    path.write_text(json.dumps(keys))
    with pytest.raises(UserError, match=r"compress.fine_tuned_from: nothing looks at it"):
        recipe.load(path)
    calibration = {"text": str(path), "samples": 1, "tokens": 8}
    scored = {"sensitivity": {"scorer": "updates", "formats": ["w4g16"]}, "compress": {"calibration": calibration}}
    path.write_text(json.dumps({"model": {"id": str(tuned)}, **scored}))
    with pytest.raises(UserError, match=r"sensitivity.scorer: updates needs the model's base"):
        recipe.load(path)
