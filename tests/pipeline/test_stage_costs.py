"""What ``explain`` says a recipe takes: of its own data, and as much as recipes/README.md says was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from mixprec import cli, pipeline, recipe
from mixprec.api import runs
from mixprec.core import artifacts
from mixprec.models.model import Model
from mixprec.pipeline import costs
from mixprec.pipeline.usage import used

#: CPU seconds that recipes took, as recipes/README.md says.
TAKEN = {
    "quickstart": 515, "methods_smollm2": 900, "packed_smollm2": 300, "pruning_smollm2": 480, "ablation_smollm2": 1080,
    "budget_smollm2": 1080, "keep_backtracking_smollm2": 420, "dynamic_gguf_smollm2": 780, "benchmarks_smollm2": 90,
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_times_are_within_a_factor_of_two_of_those_that_were_measured(name: str, shared_data: Path) -> None:
    chosen = recipe.load(recipe.catalogue()[name])
    whole = costs.total(costs.stages(chosen, pipeline.checked(chosen, shared_data)))
    assert whole.seconds is not None
    assert TAKEN[name] / 2 <= whole.seconds <= 2 * TAKEN[name]
    assert 1e9 < whole.memory < 4e9


@pytest.mark.parametrize(("name", "taken"), {"own_loop_smollm2": 660, "rac_smollm2": 210}.items())
def test_times_of_what_models_write_are_bounds(name: str, taken: int) -> None:
    chosen = recipe.load(recipe.catalogue()[name])
    whole = costs.total(costs.stages(chosen, pipeline.checked(chosen)))
    assert whole.seconds is not None
    assert whole.most and taken <= whole.seconds <= 4 * taken


@pytest.fixture
def parts(tiny_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    traces = str(tiny.write_traces(tmp_path / "traces.jsonl"))
    return {
        "model": {"id": str(tiny_checkpoint)},
        "traces": {"source": traces},
        "importance": {},
        "compress": {"method": "gptq", "calibration": {"traces": traces, "samples": 6, "tokens": 24}},
        "sensitivity": {"formats": ["w3g16", "w4g16"], "samples": 3},
        "ablation": {"each": "*_up", "formats": ["w3g16"]},
        "variants": {
            "original": {"plan": {"default": "keep"}},
            "uniform": {"plan": {"default": "w3g16"}},
            "peer": {"plan": {"default": "w3g16"}, "engine": "gptqmodel"},
        },
        "evaluate": {"traces": {"source": traces}, "max_tokens": 50, "benchmarks": ["folio"], "limit": 2,
                     "max_new_tokens": 8, "seeds": [0]},
    }  # fmt: skip


def read(tmp_path: Path, parts: dict[str, Any]) -> recipe.Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(parts))
    return recipe.load(path)


def test_the_recipe_s_own_data_is_counted(parts: dict[str, Any], tmp_path: Path) -> None:
    chosen = read(tmp_path, parts)
    found = {each.key: each for each in used(chosen, pipeline.checked(chosen))}
    encode = tiny.encoder()
    lengths = [len(encode(each["prompt"] + each["output"]).ids) for each in tiny.TRACES]
    assert (found["traces"].items, found["traces"].tokens, found["traces"].longest) == (4, sum(lengths), max(lengths))
    assert found["traces"].exact
    assert found["traces"].spans["adding_knowledge"] == 3
    assert found["evaluate.traces"].tokens == sum(min(length, 50) for length in lengths)
    assert (found["compress.calibration"].items, found["compress.calibration"].tokens) == (6, 144)
    assert (found["sensitivity"].items, found["sensitivity"].tokens) == (3, 72)
    behaved = read(tmp_path, parts | {"sensitivity": {"formats": ["w3g16"], "behaviours": ["backtracking"]}})
    scored = {each.key: each for each in used(behaved, pipeline.checked(behaved))}["sensitivity"]
    assert (scored.items, scored.what, scored.tokens) == (4, "traces", sum(lengths))


def test_stages_and_their_sum(parts: dict[str, Any], tmp_path: Path) -> None:
    chosen = read(tmp_path, parts)
    listed = costs.stages(chosen, pipeline.checked(chosen))
    works = {each.name: each.work for each in listed}
    assert list(works) == [
        "importance", "candidates", "sensitivity", "ablation", "compress uniform", "compress peer", "evaluation",
        "benchmarks",
    ]  # fmt: skip
    assert works["candidates"] == "14 modules in 2 formats"
    assert works["ablation"].startswith("3 measurements on ")  # 1_up, 2_up, nothing
    assert works["compress peer"] == "14 modules by gptq, gptqmodel"
    assert works["benchmarks"] == "6 outputs, at most 48 tokens"
    whole = costs.total(listed)
    assert whole.seconds is None  # nobody knows what the other quantizer takes
    assert whole.memory == max(each.memory for each in listed)
    assert whole.disk > sum(each.disk for each in listed)
    del parts["variants"]["peer"]
    known = read(tmp_path, parts)
    assert costs.total(costs.stages(known, pipeline.checked(known))).seconds is not None


def test_tuning_blocks_takes_time_and_memory(parts: dict[str, Any], tmp_path: Path) -> None:
    chosen = read(tmp_path, parts)
    plain = {each.name: each for each in costs.stages(chosen, pipeline.checked(chosen))}
    parts["compress"] = parts["compress"] | {"tune_blocks": {"steps": 40, "validation": 2}}
    chosen = read(tmp_path, parts)
    tuned = {each.name: each for each in costs.stages(chosen, pipeline.checked(chosen))}
    one, other = plain["compress uniform"], tuned["compress uniform"]
    assert one.seconds is not None
    assert other.seconds is not None
    assert other.seconds > one.seconds
    assert other.memory > one.memory
    assert other.work == f"{one.work}, 40 steps in each block"
    assert tuned["compress peer"] == plain["compress peer"]


def test_a_gpu_has_no_known_time(parts: dict[str, Any], tmp_path: Path) -> None:
    parts["model"]["device"] = "auto"
    chosen = read(tmp_path, parts)
    assert {each.seconds for each in costs.stages(chosen, pipeline.checked(chosen))} == {None}


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("name", ["quickstart", "budget_smollm2", "ablation_smollm2", "table3_llama_8b"])
def test_the_page_fits_the_terminal(name: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = CliRunner().invoke(cli.app, ["explain", name], catch_exceptions=False)
    tables = [line for line in result.output.splitlines() if not line.lstrip().startswith(("not checked", "to run it"))]
    assert max(map(len, tables)) <= int(columns)
    assert "…" not in result.output
    assert "Stages" in result.output


def test_what_compressing_writes_is_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "head_dim": 64}
    model = tiny.write_checkpoint(tmp_path / "model", **shape)
    plan = {"default": "q8_0", "method": "ggml", "rules": [{"match": "2_mlp", "format": "keep"}]}
    path = tmp_path / "r.yaml"
    path.write_text(
        json.dumps({"model": {"id": str(model)}, "checkpoint": {"format": "gguf"}, "variants": {"v": {"plan": plan}}})
    )
    chosen = recipe.load(path)
    (said,) = costs.stages(chosen, pipeline.checked(chosen))
    saved: list[int] = []
    real = artifacts.save_tensors

    def counting(where: Path, *arguments: Any) -> None:
        real(where, *arguments)
        saved.append(where.stat().st_size)

    monkeypatch.setattr(artifacts, "save_tensors", counting)
    runs.run(path, tmp_path / "run")
    file = (tmp_path / "run" / "variants" / "v" / "checkpoint" / "model.gguf").stat().st_size
    source = (model / "model.safetensors").stat().st_size
    assert said.traffic.written == pytest.approx(sum(saved) + file, rel=0.05)
    # The model for its hash and in the walk, what is kept once more, each file of a block, and the file for its hash.
    kept = 3 * 512 * 256 * 4 + tiny_outside(model)
    assert said.traffic.read == pytest.approx(2 * source + kept + sum(saved) + file, rel=0.05)


def tiny_outside(model: Path) -> int:
    """Bytes of what no plan names, embedding and head above all."""
    decoder = Model(model).decoder
    return 4 * sum(decoder.other.values())


def test_bytes_by_format_add_up(parts: dict[str, Any], tmp_path: Path) -> None:
    parts["variants"] = {"mixed": {"plan": {"default": "w3g16", "rules": [{"match": "1_up", "format": "keep"}]}}}
    chosen = read(tmp_path, parts)
    account = pipeline.rows(chosen, pipeline.checked(chosen))["mixed"]["account"]
    assert list(account.formats) == ["w3g16", "keep"]
    assert account.formats["keep"].bytes == 2 * 32 * 48
    assert sum(total.bytes for total in account.formats.values()) + account.other_bytes == account.packed_bytes
    assert account.other_bytes == 2 * sum(Model(parts["model"]["id"]).decoder.other.values())
