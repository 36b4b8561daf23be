"""Real readers in environments of their own: GPTQModel, mlx-lm, vLLM on a CPU. Slow: importing them takes minutes."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.compress.stream import compress
from mixprec.contrib.peers import client
from mixprec.evaluate import passages
from mixprec.models import locate
from mixprec.models.locate import BUNDLED
from mixprec.models.model import Model
from mixprec.plan.schema import Plan

MakeSource = Callable[..., Path]
Planner = Callable[..., Plan]

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "runtimes"

pytestmark = pytest.mark.slow


def ask(runtime: str, work: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a runtime's script in its environment; folder -> answer."""
    why = client.missing(runtime)
    if why:
        pytest.skip(why)
    (work / "job.json").write_text(json.dumps(job))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    python = client.folder() / runtime / "bin" / "python"
    command = [python, SCRIPTS / f"with_{runtime}.py", work / "job.json", work / "result.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=3000)
    assert (work / "result.json").is_file(), done.stderr[-3000:]
    return dict(json.loads((work / "result.json").read_text()))


#: Token ids that every tiny model knows.
PROMPT = torch.randint(2, 300, (40,), generator=torch.Generator().manual_seed(0)).tolist()
#: GPTQ's symmetric grids have scales below 0 too.
CALIBRATION = Calibration(torch.tensor([PROMPT, PROMPT[::-1]]), None, {"sources": []}, "digest")

#: Name of a checkpoint -> default and rules of its plan.
Plans = dict[str, tuple[str, dict[str, Any]]]


def job_of(folder: Path, planner: Planner, plans: Plans, format: str, work: Path, dtype: str) -> dict[str, Any]:
    """What a runtime is asked of checkpoints of one model, which are written here."""
    for name, (default, rules) in plans.items():
        plan = planner(folder, default, "gptq", **rules)
        compress(Model(folder), plan, work / name, calibration=CALIBRATION, format=FORMATS[format])
    checkpoints = [str(work / name) for name in plans]
    return {"checkpoints": checkpoints, "dtype": dtype, "prompt": PROMPT, "passages": [PROMPT]}


def compare(where: str, found: Mapping[str, Any], job: Mapping[str, Any], *, logits: float, nll: float) -> None:
    """A runtime's answer beside mixprec's own; tolerances are absolute."""
    assert "error" not in found, (where, found)
    expected = own(where, job)
    torch.testing.assert_close(torch.tensor(found["logits"]), expected["logits"], atol=logits, rtol=0)
    assert found["nll"] == pytest.approx(expected["nll"], abs=nll)


@torch.no_grad()
def own(folder: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What mixprec itself makes of a checkpoint."""
    model = Model(folder, dtype=job["dtype"]).load().model
    total, count = 0.0, 0
    for ids in job["passages"]:
        tokens = torch.tensor([ids])
        scores = model(tokens).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(scores, tokens[0, 1:], reduction="sum"))
        count += len(ids) - 1
    prompt = torch.tensor([job["prompt"]])
    found = model.generate(prompt, max_new_tokens=16, min_new_tokens=16, do_sample=False)
    logits = model(prompt).logits[0, -1].float()
    return {"nll": total / count, "greedy": found[0, prompt.shape[1] :].tolist(), "logits": logits}


def test_gptqmodel_reads_every_width_mixed_and_asymmetric(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(dtype=torch.float16)
    plans: Plans = {
        **{f"w{bits}": (f"w{bits}g32", {}) for bits in (2, 3, 4, 8)},
        "mixed": ("w3g32", {"1_attn": "w4g32", "2_q": "w8g16", "2_up": "w2", "last_down": "keep"}),
        "asymmetric": ("w3g32", {"1_attn": "w4g32_asym", "1_up": "w3g32_asym", "2_up": "w2g32_asym"}),
    }
    job = job_of(folder, planner, plans, "gptq", tmp_path, "float16") | {"reader": "gptqmodel"}
    for where, found in ask("gptqmodel", tmp_path, job).items():
        # Both multiply float16 matrices with the same values; the order of sums may differ.
        compare(where, found, job, logits=2e-3, nll=1e-3)


def test_transformers_reads_uniform_gptq_with_gptqmodel_and_optimum(
    source: MakeSource, planner: Planner, tmp_path: Path
) -> None:
    folder = source(dtype=torch.float16)
    plans: Plans = {
        **{f"w{bits}": (f"w{bits}g32", {}) for bits in (2, 3, 4, 8)},
        "kept": ("w3g32", {"last_down": "keep", "1_q": "keep"}),
        "asymmetric": ("w4g32_asym", {}),
        "mixed": ("w3g32", {"1_attn": "w4g32"}),
        "rows": ("w4", {}),
    }
    job = job_of(folder, planner, plans, "gptq", tmp_path, "float16") | {"reader": "transformers"}
    answers = ask("gptqmodel", tmp_path, job)
    # Formats of single modules stand under ``dynamic``, which transformers does not read: check refuses such plans.
    assert "error" in answers.pop(str(tmp_path / "mixed"))
    # The only 4-bit kernel for CPUs, torch's own; check knows that too.
    assert "expect qGroupSize to be 32, 64, 128 or 256" in answers.pop(str(tmp_path / "rows"))["error"]
    for where, found in answers.items():
        compare(where, found, job, logits=2e-3, nll=1e-3)


def test_transformers_and_gptqmodel_read_awq(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(dtype=torch.float16)
    plans: Plans = {
        "whole": ("w4g32_asym", {}),
        "kept": ("w4g32_asym", {"last_mlp": "keep"}),
        "rows": ("w4_asym", {}),
    }
    job = job_of(folder, planner, plans, "awq", tmp_path, "float16") | {"reader": "transformers"}
    answers = ask("gptqmodel", tmp_path, job)
    # It takes torch's own kernel for CPUs; check knows that.
    assert "expect qGroupSize to be 32, 64, 128 or 256" in answers.pop(str(tmp_path / "rows"))["error"]
    grouped = {"reader": "gptqmodel", "checkpoints": list(answers)}
    for where, found in (*answers.items(), *ask("gptqmodel", tmp_path, job | grouped).items()):
        compare(where, found, job, logits=2e-3, nll=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_mlx_lm_reads_every_width_and_writes_what_is_read(
    source: MakeSource, planner: Planner, tmp_path: Path, architecture: str
) -> None:
    tied = architecture == "gemma3_text"
    # mlx-lm expects a window in five of six layers where nothing is said, and six layers at least.
    more = {"sliding_window_pattern": 2, "layer_types": ["sliding_attention", "full_attention"]} if tied else {}
    folder = source(architecture, tie_word_embeddings=tied, **more)
    affine = {"format": "w2_affine", "method": "rtn"}
    plans: Plans = {
        **{f"w{bits}": (f"w{bits}g32", {}) for bits in (2, 3, 4, 5, 6, 8)},
        "mixed": ("w3g32", {"1_attn": "w4g64_asym", "2_q": "w8g64", "2_up": affine, "last_down": "keep"}),
        "outside": ("w4g32", {"embedding": "w6g32", **({} if tied else {"head": "w5g64"})}),
    }
    grids = {"q_proj": {"bits": 3, "group_size": 64}, "1.mlp": False, "v_proj": {"bits": 6, "group_size": 32}}
    made = {"source": str(folder), "bits": 4, "group_size": 32, "grids": grids}
    job = job_of(folder, planner, plans, "mlx", tmp_path, "float32")
    job["checkpoints"].append(str(tmp_path / "theirs"))
    job["convert"] = {str(tmp_path / "theirs"): made}
    for where, found in ask("mlx", tmp_path, job).items():
        compare(where, found, job, logits=1e-4, nll=1e-5)
    assert {str(layout.format) for layout in open_checkpoint(tmp_path / "theirs").layouts.values()} == {
        "keep", "w3g64_affine", "w4g32_affine", "w6g32_affine"
    }  # fmt: skip


def test_vllm_on_a_cpu(planner: Planner, tmp_path: Path) -> None:
    where = locate.resolve(BUNDLED)
    cases: dict[str, tuple[str, str, dict[str, str]]] = {
        "dense": ("dense", "w3g64", {}),
        "mixed": ("compressed-tensors", "w4g64", {"last_mlp": "keep"}),
        "asymmetric": ("compressed-tensors", "w4g64_asym", {}),
        "gptq": ("gptq", "w4g64", {"last_mlp": "keep"}),
        "three": ("compressed-tensors", "w3g64", {}),
        "split": ("compressed-tensors", "w4g64", {"1_q": "keep"}),
    }
    for name, (format, default, rules) in cases.items():
        compress(Model(where), planner(Path(where), default, **rules), tmp_path / name, format=FORMATS[format])
    encoder = Model(BUNDLED).encoder
    texts: Sequence[passages.Passage] = passages.from_text("bundled:held_out", encoder, 128, 3)
    ids = [text.tokens.tolist() for text in texts]
    job = {
        "checkpoints": [str(tmp_path / name) for name in cases],
        "dtype": "float16",  # its 4-bit kernel has 16-bit types alone, and float16 rounds less than bfloat16
        "prompt": ids[0][:32],
        "new_tokens": 16,
        "passages": ids,
    }
    found = {Path(folder).name: answer for folder, answer in ask("vllm", tmp_path, job).items()}
    assert "uint3b4" in found["three"]["error"]  # 3 bits: no kernel on CPUs
    assert "different quantization schemes" in found["split"]["error"]  # q kept, k and v in 4 bits
    _same(found["dense"], own(str(tmp_path / "dense"), job))
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        assert (
            "no attribute 'cpu_gemm_wna16'" in found["mixed"]["error"]
        )  # the kernel is in the build for AVX-512 alone
        pytest.skip("vLLM's 4-bit kernel needs AVX-512; all but it was compared")
    for name in ("mixed", "asymmetric", "gptq"):
        _same(found[name], own(str(tmp_path / name), job))


def _same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert "error" not in found, found
    assert found["greedy"] == expected["greedy"]
    assert math.exp(found["nll"] - expected["nll"]) == pytest.approx(1, abs=0.01)
