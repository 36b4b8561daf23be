"""The usual job: the recipe that it makes, what it refuses, and a run of it on the tiny model."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

import mixprec as mp
from mixprec import cli, recipe
from mixprec.core.errors import UserError
from mixprec.pipeline.quantize import text_of


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> mp.Model:
    """Rows that llama.cpp's and vLLM's formats fit: 128 and 256 weights."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    shape = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_key_value_heads": 2}
    return mp.Model(str(tiny.write_checkpoint(folder, steps=40, **shape)))


@pytest.fixture(scope="module")
def long_traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for samples of 512 tokens."""
    draw = random.Random(0)
    words = " ".join(trace["output"] for trace in tiny.TRACES).split()
    rows = [
        {**trace, "id": f"{trace['id']}-{number}", "output": " ".join(draw.choices(words, k=120))}
        for number in range(30)
        for trace in tiny.TRACES
    ]
    return tiny.write_traces(tmp_path_factory.mktemp("long") / "traces.jsonl", *rows)


def made(model: mp.Model, own: Path, **options: Any) -> recipe.Recipe:
    given = {"bits": 4.0, "runtime": "vllm", "traces": own} | options
    return mp.quantize_recipe(model, **given)


@pytest.fixture
def long_model(wide: mp.Model, tmp_path: Path) -> mp.Model:
    """The same with a context that samples of 512 tokens fit."""
    config = json.loads((Path(wide.id) / "config.json").read_text())
    for file in Path(wide.id).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return mp.Model(str(tmp_path))


def test_the_recipe_for_each_runtime(long_model: mp.Model, long_traces: Path) -> None:
    vllm = made(long_model, long_traces, bits=4.5, protect=["1_o"])
    budget = vllm.variants["quantized"].plan.budget
    assert budget is not None and vllm.sensitivity is not None
    assert (budget.tie, list(map(str, budget.pin.values()))) == ("fused", ["keep"])
    assert [str(each) for each in budget.candidates] == [f"w{bits}g128" for bits in (2, 3, 4, 5, 6, 8)]
    assert (vllm.checkpoint.format, vllm.checkpoint.runtime) == ("compressed-tensors", "vllm")
    assert (vllm.compress.method, str(vllm.sensitivity.base)) == ("gptq", "w4g128")
    assert budget.exchange is None
    transformers = made(long_model, long_traces, runtime="transformers", bits=3.25)
    budget = transformers.variants["quantized"].plan.budget
    assert budget is not None and budget.tie is None and budget.exchange is not None
    llama = made(long_model, long_traces, runtime="llama.cpp", bits=5.0)
    assert (llama.compress.method, llama.checkpoint.format) == ("ggml", "gguf")
    mlx = made(long_model, long_traces, runtime="mlx", bits=4.5)
    budget = mlx.variants["quantized"].plan.budget
    assert budget is not None and budget.tie is None
    assert [str(each) for each in budget.candidates] == [f"w{bits}g128" for bits in (2, 3, 4, 5, 6, 8)]
    assert (mlx.compress.method, mlx.checkpoint.format, mlx.checkpoint.device) == ("gptq", "mlx", None)
    sglang = made(long_model, long_traces, runtime="sglang", bits=4.5)
    budget = sglang.variants["quantized"].plan.budget
    assert budget is not None and budget.tie == "fused"
    assert [str(each) for each in budget.candidates] == ["w4g128", "w8g128"]


def test_a_cpu_loads_less(long_model: mp.Model, long_traces: Path) -> None:
    found = made(long_model, long_traces, runtime_device="cpu", bits=4.5)
    budget = found.variants["quantized"].plan.budget
    assert budget is not None and [str(each) for each in budget.candidates] == ["w4g128", "keep"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 1.5}, r"^bits 1\.5: vllm on ampere loads w2g128, .* the nearest is 2\.125"),
        ({"bits": 9}, r"the nearest is 8\.125"),
        ({"bits": 3.5, "runtime_device": "cpu"}, r"vllm on cpu loads w4g128 .* the nearest is 4\.125"),
        ({"bits": 2.5, "protect": ["last_mlp"]}, r"plans with last_mlp kept take .* the nearest is \d"),
        ({"runtime": "tgi"}, r"^runtime: 'tgi' is none of"),
        ({"method": "magic"}, r"^method: 'magic' is none of"),
        ({"method": "sparsegpt"}, r"^method sparsegpt: vllm loads no format of it"),
        ({"runtime": "llama.cpp", "method": "gptq"}, r"leave it out, which takes ggml"),
        ({"protect": ["last_up"]}, r"^protect: 2_gate, 2_up are tied .* protect all of them or none"),
        ({"protect": ["99_up"]}, r"^protect: .*99_up"),
        ({"bits": None}, r"^bits: give bits or file_mb"),
        ({"file_mb": 1.0}, r"^bits: give bits or file_mb, .*: one of the two"),
        ({"bits": None, "file_mb": 0}, r"^file_mb 0: give a number above 0"),
        ({"bits": -1}, r"^bits -1: give a number above 0"),
        ({"bits": 0}, r"^bits 0: give a number above 0"),
        ({"bits": float("nan")}, r"bits: nan: give a finite number"),
        ({"bits": True}, r"bits: True: give a finite number"),
        ({"runtime": "vlm"}, r"^runtime: 'vlm' is none of .*did you mean vllm\?"),
        ({"method": "gptc"}, r"^method: 'gptc' is none of .*did you mean gptq\?"),
        ({"runtime_device": "amper"}, r"^runtime_device: 'amper' is not one of"),
        ({"runtime_version": "new"}, r"^runtime_version: 'new' is no version number"),
        ({"protect": "last_mlp"}, r"protect: 'last_mlp': give a list of text"),
        ({"traces": "bundled:held_out"}, r"(?s)mixprec quantize: .*it is what compressed models are evaluated on"),
        ({"text": "missing.txt"}, r"missing\.txt"),
    ],
)
def test_what_is_refused(long_model: mp.Model, long_traces: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        made(long_model, long_traces, **options)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--bits", "1.5"], r"^error: --bits 1\.5: vllm on ampere loads .* the nearest is 2\.125$"),
        (["--protect", "99_up"], r"^error: --protect: .*99_up"),
        (["--file-mb", "1"], r"^error: --bits: give bits or file_mb"),
        (["--method", "magic"], r"^error: --method: 'magic' is none of"),
        (["--runtime-device", "amper"], r"^error: --runtime-device: 'amper' is not one of"),
        (["--runtime-version", "new"], r"^error: --runtime-version: 'new' is no version number"),
    ],
)
def test_the_command_line_names_options(
    long_model: mp.Model, long_traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], more: list[str], told: str,
) -> None:  # fmt: skip
    words = ["quantize", long_model.id, "--bits", "4", "--runtime", "vllm", "--traces", str(long_traces)]
    monkeypatch.setattr(sys, "argv", ["mixprec", *words, "--out", str(tmp_path / "out"), *more])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert re.search(told, capsys.readouterr().err, re.MULTILINE)


def test_what_the_recipe_refuses_is_told_by_key(long_model: mp.Model, long_traces: Path) -> None:
    with pytest.raises(UserError, match=r"mixprec quantize: model\.dtype"):
        made(mp.Model(long_model.id, dtype="int8"), long_traces)
    with pytest.raises(UserError, match=r"(?s)mixprec quantize: .*float64"):
        made(mp.Model(long_model.id, device="mps"), long_traces)


def test_the_nearest_bits_can_be_asked_for(long_model: mp.Model, long_traces: Path) -> None:
    for bits in (2.125, 8.125):
        made(long_model, long_traces, bits=bits)


def test_the_text_reads_back(long_model: mp.Model, long_traces: Path, tmp_path: Path) -> None:
    found = made(long_model, long_traces)
    path = tmp_path / "recipe.yaml"
    path.write_text(text_of(found, tmp_path))
    assert recipe.load(path) == found
    assert path.read_text().startswith(f"# mixprec run {path} --out {tmp_path}\n")


def test_one_command(
    long_model: mp.Model, long_traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    held_out = tiny.write_traces(tmp_path / "held_out.jsonl")
    words = ["quantize", long_model.id, "--bits", "3.5", "--runtime", "vllm", "--traces", str(long_traces)]
    words += ["--samples", "4", "--held-out", str(held_out), "--out", str(tmp_path / "out")]

    def call(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mixprec", *words, *more])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert caught.value.code == 0, captured.err
        return captured.out

    shown = call("--recipe-only")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.yaml"]
    text = (tmp_path / "out" / "recipe.yaml").read_text()
    assert text in shown
    assert text in call()
    assert (tmp_path / "out" / "recipe.yaml").read_text() == text
    run = mp.RunResult.load(tmp_path / "out")
    checkpoint = run.checkpoint("quantized")
    assert checkpoint.format == "compressed-tensors" and run.report.is_file()
    row = run.summary["variants"]["quantized"]
    assert row["effective_bits"] <= 3.5 and row["kl_mean"] > 0
    assert "mixprec run" in (checkpoint.folder / "README.md").read_text()
    plan = mp.Plan(mp.Model(long_model.id), checkpoint.plan)
    plan.check(runtime="vllm")


def test_a_file_of_a_size_has_its_embedding_planned_where_the_runtime_loads_that(
    long_model: mp.Model, long_traces: Path, tmp_path: Path
) -> None:
    def of(runtime: str, **options: Any) -> recipe.Recipe:
        return made(long_model, long_traces, bits=None, runtime=runtime, file_mb=0.3, samples=4, **options)

    both = ("embedding", "head")
    for runtime, planned in {"llama.cpp": both, "mlx": both, "transformers": ("head",), "vllm": ()}.items():
        chosen = of(runtime)
        budget = chosen.variants["quantized"].plan.budget
        assert budget is not None and chosen.sensitivity is not None and budget.exchange is None
        assert budget.outside == chosen.sensitivity.outside == planned
    held_out = tiny.write_traces(tmp_path / "held_out.jsonl")
    done = mp.run(of("llama.cpp", held_out=held_out), tmp_path / "out")
    found = done.checkpoint("quantized")
    assert 0.27e6 < sum(path.stat().st_size for path in found.folder.glob("*.gguf")) <= 0.3e6
    formats = {
        line.format for address, line in mp.Plan(long_model, found.plan).content.modules.items() if "embed" in address
    }
    assert formats and "keep" not in map(str, formats)


def test_tuning_leaves_samples_that_nothing_else_sees(long_model: mp.Model, long_traces: Path) -> None:
    plain, tuned = (made(long_model, long_traces, bits=4.5, tune=tune).compress for tune in (False, True))
    assert plain.tune is None
    assert tuned.tune is not None
    assert plain.calibration is not None and tuned.calibration is not None
    most = mp.calibrate(long_model, traces=long_traces, samples=tuned.calibration.samples)
    rest = mp.calibrate(long_model, traces=long_traces, samples=4, skip=tuned.calibration.samples)
    assert len(most.tokens) <= len(
        mp.calibrate(long_model, traces=long_traces, samples=plain.calibration.samples).tokens
    )
    seen = {tuple(row) for row in most.tokens.tolist()}
    assert not any(tuple(row) in seen for row in rest.tokens.tolist())
