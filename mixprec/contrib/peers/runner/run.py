"""One quantization by a peer, in the peer's own environment: python run.py JOB.json

Calls the peer on CPU and writes a dense checkpoint, the values that its result has in the source's own type, so that
every peer is evaluated in the same way. Imports nothing of mixprec. ``client.py`` writes the job and calls this.

Keys of JOB
    peer         llmcompressor, gptqmodel, autoround, modelopt or llamacpp
    packed       a folder that gets, besides, the checkpoint that the peer itself writes; llmcompressor and gptqmodel
    method       gptq, gptaq, awq, rtn, sparsegpt, autoround, as far as the peer has it (docs/peers.md)
    model, out   folders: a safetensors checkpoint; where the dense one goes, which must not be there
                 or allocate: no checkpoint, only which module gets which format; autoround and modelopt
                 or mixture: from a folder with model.gguf in 16 bits to one in a mixture of types; llamacpp
    mixture      for it, as llama.cpp names it, such as q3_k_m; imatrix: a file as llama-imatrix writes it
    files        what belongs to the checkpoint, by paths within ``model``; default: all files, none in folders
    budgets      for allocate: code bits per weight, a list; candidates: [{bits, group_size, symmetric}, …]
    calibration  a safetensors file with ``tokens`` (sequences, tokens) int64, used as they are; null for none
    plan         a file from mixprec export-plan, for this peer and method
    format       {bits, group_size (-1: whole rows), symmetric} of all linear modules of the blocks, without ``plan``
    sparsity     {ratio, pattern: null or "2:4"}, for sparsegpt
    settings     damp, act_order, mse, alpha, iters, …; what isn't named stays as the peer has it
    dtype        in which the model is loaded: float32 (default), bfloat16, float16
    threads      of torch (default 1)
    result       where the result goes

Keys of the result: peer, method, versions, settings (what was used, in the peer's words), seconds_total and cpu_seconds
(of the call that quantizes alone: no imports, no loading, no saving), seconds_load (imports and loading),
peak_rss_bytes (of the process from its start to the end of the call), tokens. Of allocate also plans (budget -> module
-> bits) and seconds_each (of the budgets: what is scored for the first one serves the others).
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Peer -> module beside this file with ``load(job)``, ``quantize(loaded, job)``, ``weights(loaded)``, maybe ``save``.
ADAPTERS = {
    "llmcompressor": "with_llmcompressor",
    "gptqmodel": "with_gptqmodel",
    "autoround": "with_autoround",
    "modelopt": "with_modelopt",
    "llamacpp": "with_llamacpp",
}
#: Methods after which no dense checkpoint is written: there is none to write, or the peer wrote its file itself.
COMPLETE = ("allocate", "mixture")
PACKAGES = (
    "torch",
    "transformers",
    "llmcompressor",
    "compressed-tensors",
    "gptqmodel",
    "auto-round",
    "nvidia-modelopt",
    "llama-cpp-python",
)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threads = int(job.get("threads", 1))
    # Before torch is imported: its pools are sized once.
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    out = Path(job["out"])
    if out.exists():
        sys.exit(f"{out} is there already; name another folder")
    started = time.perf_counter()
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    adapter = importlib.import_module(ADAPTERS[job["peer"]])
    loaded = adapter.load(job)
    seconds_load = time.perf_counter() - started
    wall, cpu = time.perf_counter(), time.process_time()
    settings = adapter.allocate(loaded, job) if job["method"] == "allocate" else adapter.quantize(loaded, job)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if job["method"] not in COMPLETE:
        write_dense(Path(job["model"]), out, adapter.weights(loaded), job.get("files"))
    if job.get("packed"):  # last: saving may pack the model where it is
        adapter.save(loaded, job["packed"])
    found = {key: settings.pop(key) for key in ("plans", "seconds_each") if key in settings}
    result = {
        **found,
        "peer": job["peer"],
        "method": job["method"],
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "settings": settings,
        "threads": threads,
        "tokens": tokens(job),
        "seconds_total": wall,
        "cpu_seconds": cpu,
        "seconds_load": seconds_load,
        "peak_rss_bytes": peak,
    }
    text = json.dumps(result, indent=2, default=str) + "\n"
    Path(job["result"]).write_text(text, encoding="utf-8")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def calibration(job: dict[str, Any]) -> Any:
    """Tokens (sequences, tokens) of the job, or None."""
    from safetensors.torch import load_file

    return load_file(job["calibration"])["tokens"].long() if job.get("calibration") else None


def tokens(job: dict[str, Any]) -> int:
    found = calibration(job)
    return 0 if found is None else found.numel()


def load_model(job: dict[str, Any]) -> Any:
    """The job's model through transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, job.get("dtype", "float32"))
    return AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=dtype, local_files_only=True, trust_remote_code=False
    ).eval()


def write_dense(source: Path, out: Path, weights: dict[str, Any], files: list[str] | None = None) -> None:
    """Copy a checkpoint with other values under the same names, in the same types; a complete folder or none.

    ``files``: which of them, by their paths in ``source``; default: all but folders.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in files or sorted(path.name for path in source.iterdir() if path.is_file()):
        path = source / file
        if path.suffix != ".safetensors":
            (part / file).parent.mkdir(exist_ok=True)
            shutil.copy2(path, part / file)
            continue
        with safe_open(path, framework="pt") as shard:
            tensors = {name: replaced(shard.get_tensor(name), name, weights) for name in shard.keys()}  # noqa: SIM118
            save_file(tensors, part / path.name, metadata=shard.metadata() or {"format": "pt"})
    part.rename(out)


def replaced(source: Any, name: str, weights: dict[str, Any]) -> Any:
    """The new tensor under a name, checked against the source's."""
    import torch

    if name not in weights:
        sys.exit(f"the peer's result has no {name}")
    new = weights[name].detach().to(source.dtype).contiguous().clone()
    if new.shape != source.shape:
        sys.exit(f"{name}: the peer's result has the shape {tuple(new.shape)}, the source {tuple(source.shape)}")
    if not torch.isfinite(new).all():
        sys.exit(f"{name}: the peer's result has NaN or infinite values in {source.dtype}")
    return new


if __name__ == "__main__":
    main()
