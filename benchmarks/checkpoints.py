"""Checkpoints: bytes on disk against theory and prediction, packing speed, and which runtime loads what

    python benchmarks/checkpoints.py [--quick] [--work FOLDER] --json OUT

SmolLM2-135M-Instruct rounded to nearest, in every format of safetensors. vLLM and GPTQModel run in their own
environments (benchmarks/peers/build.sh vllm gptqmodel), and so does transformers for GPTQ, which it reads through
GPTQModel; what isn't installed is not run. A runtime has loaded a checkpoint when its perplexity on held-out text is
within 1% of mixprec's own, in the same type. GGUF and llama.cpp have their own tests. Checkpoints that are complete in
the work folder are not made again.

Keys of OUT
    overhead_w3            bits per weight that w3g64 takes on disk as compressed-tensors, shapes included, divided by
                           the 3 + 16/64 of codes and scales
    overhead_w3_gptq       the same in GPTQ's layout, which stores zero points and g_idx besides
    predicted_error        largest relative difference between predicted and written bytes, over all checkpoints
    pack_speed_ratio       CPU time of compressed-tensors' own packer divided by ours, 3 bits, all matrices of the model
    pack_speed_ratio_4     the same in 4 bits
    perplexity_ratio       runtime and checkpoint -> its perplexity divided by mixprec's own of the same checkpoint
    greedy_equal           runtime and checkpoint -> whether the 16 tokens after a prompt are those of mixprec's own
    matrix                 runtime and checkpoint -> loaded, refused and why, or not run and why
    quick                  whether --quick was given: fewer repetitions, one passage
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import environment

environment.settle()  # before torch is imported

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from machine import timed, write
from transformers import AutoModelForCausalLM

from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.checkpoint.target import CARD
from mixprec.compress.stream import compress
from mixprec.contrib.peers import client
from mixprec.evaluate import passages
from mixprec.models.config import load_config
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics import packing
from mixprec.plan.rules import PlanSpec, build_plan

HERE = Path(__file__).parent
_KEEP_LAST = [{"match": "last_mlp", "format": "keep"}]


class Case(NamedTuple):
    """A checkpoint, and the runtimes that it is shown to."""

    format: str
    default: str
    rules: Sequence[Mapping[str, str]]
    runtimes: Sequence[str]


CASES = {
    "dense w3g64": Case("dense", "w3g64", (), ("transformers", "vllm")),
    "compressed-tensors w3g64": Case("compressed-tensors", "w3g64", (), ("transformers", "vllm")),
    "compressed-tensors w4g64, last MLP kept": Case(
        "compressed-tensors", "w4g64", _KEEP_LAST, ("transformers", "vllm")
    ),
    "compressed-tensors w4g64 and w3g64, last MLP kept": Case(
        "compressed-tensors", "w4g64", [*_KEEP_LAST, {"match": "1_attn", "format": "w3g64"}], ("transformers",)
    ),
    "compressed-tensors w4g64_asym": Case("compressed-tensors", "w4g64_asym", (), ("transformers", "vllm")),
    "compressed-tensors w4g64, 1_q kept": Case(
        "compressed-tensors", "w4g64", [{"match": "1_q", "format": "keep"}], ("transformers", "vllm")
    ),
    "gptq w3g64": Case("gptq", "w3g64", (), ("gptqmodel", "transformers", "vllm")),
    "gptq w4g64, last MLP kept": Case("gptq", "w4g64", _KEEP_LAST, ("gptqmodel", "transformers", "vllm")),
    "gptq w4g64 and w3g64": Case(
        "gptq", "w4g64", [{"match": "1_attn", "format": "w3g64"}], ("gptqmodel", "transformers")
    ),
    "gptq w4g64_asym": Case("gptq", "w4g64_asym", (), ("gptqmodel", "transformers")),
}


class Pass(NamedTuple):
    """One start of a runtime in an ``environment`` of its own (None: here), computing in ``dtype``."""

    runtime: str
    environment: str | None
    dtype: str
    formats: Sequence[str]


#: Kernels that work on packed weights, GPTQModel's and vLLM's, compute in 16 bits alone.
PASSES = (
    Pass("transformers", None, "float32", ("dense", "compressed-tensors")),
    Pass("vllm", "vllm", "float16", ("dense", "compressed-tensors", "gptq")),
    Pass("gptqmodel", "gptqmodel", "float16", ("gptq",)),
    Pass("transformers", "gptqmodel", "float16", ("gptq",)),
)


class Run:
    """Checkpoints of the embedded model in a folder, and what becomes of them."""

    def __init__(self, work: Path, quick: bool) -> None:
        self.work, self.quick = work, quick
        config = load_config(BUNDLED)
        self.config, self.inventory = config, decoder_of(config)
        encoder = Model(BUNDLED).encoder
        texts = passages.from_text("bundled:held_out", encoder, 128, 1 if quick else 3)
        self.passages = [passage.tokens.tolist() for passage in texts]
        self.prompt = self.passages[0][:32]
        self.predicted_error = 0.0

    def folder(self, name: str) -> Path:
        return self.work / name.replace(" ", "_").replace(",", "")

    def make(self, name: str) -> Path:
        """The checkpoint of a case, written and measured."""
        case = CASES[name]
        spec = PlanSpec.model_validate({"default": case.default, "rules": list(case.rules)})
        plan = build_plan(spec, self.inventory, BUNDLED, "rtn")
        if not (self.folder(name) / CARD).is_file():
            compress(Model(BUNDLED), plan, self.folder(name), format=FORMATS[case.format])
        on_disk = sum(path.stat().st_size for path in self.folder(name).glob("*.safetensors"))
        predicted = FORMATS[case.format].bytes(plan, self.inventory, self.config)
        self.predicted_error = max(self.predicted_error, abs(on_disk / predicted - 1))
        return self.folder(name)

    def overhead(self, name: str, theory: float) -> float:
        """Bits per weight on disk of the linear modules, divided by those in theory."""
        layouts = open_checkpoint(self.folder(name)).layouts
        weights = sum(module.weights for module in self.inventory.linears)
        return 8 * sum(layout.bytes for layout in layouts.values()) / weights / theory

    @torch.no_grad()
    def own(self, name: str, dtype: str) -> dict[str, Any]:
        """What mixprec itself makes of a checkpoint."""
        return self.answers(Model(self.folder(name), dtype=dtype).load().model)

    @torch.no_grad()
    def answers(self, model: Any) -> dict[str, Any]:
        total, count = 0.0, 0
        for ids in self.passages:
            tokens = torch.tensor([ids])
            scores = model(tokens).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(scores, tokens[0, 1:], reduction="sum"))
            count += len(ids) - 1
        found = model.generate(torch.tensor([self.prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
        return {"nll": total / count, "greedy": found[0, len(self.prompt) :].tolist()}

    def transformers(self, names: Sequence[str], dtype: str) -> dict[str, dict[str, Any]]:
        """transformers' own readers, in this process."""
        found = {}
        for name in names:
            try:
                model = AutoModelForCausalLM.from_pretrained(self.folder(name), dtype=getattr(torch, dtype))
                found[name] = self.answers(model.eval())
            except Exception as problem:
                found[name] = {"error": f"{type(problem).__name__}: {problem}"}
        return found

    def elsewhere(self, start: Pass, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """A runtime in an environment of its own."""
        assert start.environment
        folders = {str(self.folder(name)): name for name in names}
        job = {
            "checkpoints": list(folders),
            "dtype": start.dtype,
            "reader": start.runtime,
            "prompt": self.prompt,
            "new_tokens": 16,
            "passages": self.passages,
        }
        stem = f"{start.runtime}_in_{start.environment}"
        job_file, result_file = self.work / f"{stem}.json", self.work / f"{stem}_result.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        result_file.unlink(missing_ok=True)
        python = client.folder() / start.environment / "bin" / "python"
        script = HERE / "runtimes" / f"with_{start.environment}.py"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        log = self.work / f"{stem}.log"
        with log.open("w") as said:
            subprocess.run(
                [python, script, job_file, result_file], stdout=said, stderr=said, env=environment, check=False
            )
        results = json.loads(result_file.read_text()) if result_file.is_file() else {}
        lost = {"error": f"ended without an answer, see {log.name}"}
        return {name: results.get(folder, lost) for folder, name in folders.items()}


def verdict(found: Mapping[str, Any]) -> str:
    """One cell of the matrix."""
    if "error" not in found:
        return "loaded"
    lines = str(found["error"]).replace("\n", " ")
    if "no attribute 'cpu_gemm_wna16'" in lines:
        return "not run: vLLM's 4-bit kernel is in its build for AVX-512 alone"
    return f"refused: {lines[:160]}"


def pack_speed_ratio(bits: int, repeats: int) -> float:
    """CPU time of compressed-tensors' packer divided by ours, on codes in the types that both work on."""
    shapes = [(module.out_features, module.in_features) for module in decoder_of(_config()).linears[:7]]
    codes = [torch.randint(2**bits, shape, dtype=torch.uint8) for shape in shapes]
    signed = [(one.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8) for one in codes]
    ratios = []
    for _ in range(repeats):
        ours = timed(lambda: [packing.pack(one, bits) for one in codes])
        ratios.append(timed(lambda: [pack_to_int32(one, bits) for one in signed]) / ours)
    return sorted(ratios)[len(ratios) // 2]


def _config() -> Any:
    return load_config(BUNDLED)


def measure(run: Run) -> dict[str, Any]:
    for name in CASES:
        run.make(name)
    matrix: dict[str, str] = {}
    ratios: dict[str, float] = {}
    greedy: dict[str, bool] = {}
    own: dict[tuple[str, str], dict[str, Any]] = {}
    for start in PASSES:
        dtype = start.dtype
        names = [n for n, case in CASES.items() if start.runtime in case.runtimes and case.format in start.formats]
        if start.environment and client.missing(start.environment):
            matrix |= {f"{start.runtime}: {name}": "not run: no environment" for name in names}
            continue
        results = run.elsewhere(start, names) if start.environment else run.transformers(names, dtype)
        for name, found in results.items():
            cell = f"{start.runtime}: {name}"
            matrix[cell] = verdict(found)
            if "nll" not in found:
                continue
            if (name, dtype) not in own:
                own[name, dtype] = run.own(name, dtype)
            ratios[cell] = math.exp(found["nll"] - own[name, dtype]["nll"])
            if abs(ratios[cell] - 1) > 0.01:
                matrix[cell] = f"wrong: perplexity off by {ratios[cell] - 1:.1%}"
            if "greedy" in found:
                greedy[cell] = found["greedy"] == own[name, dtype]["greedy"]
    repeats = 5 if run.quick else 25
    return {
        "overhead_w3": run.overhead("compressed-tensors w3g64", 3.25),
        "overhead_w3_gptq": run.overhead("gptq w3g64", 3.25),
        "predicted_error": run.predicted_error,
        "pack_speed_ratio": pack_speed_ratio(3, repeats),
        "pack_speed_ratio_4": pack_speed_ratio(4, repeats),
        "perplexity_ratio": ratios,
        "greedy_equal": greedy,
        "matrix": matrix,
        "quick": run.quick,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints, 1 GB; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        write(arguments.json, __file__, measure(Run(work.resolve(), arguments.quick)), [arguments.work])


if __name__ == "__main__":
    sys.exit(main())
