"""From a plan to a checkpoint and what that cost, for pareto.py: by mixprec, by a peer, by llama.cpp's quantizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allocation import PEERS
from bench import once, run_peer
from pareto_pipelines import OURS, Job

from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf.imatrix import write_imatrix
from mixprec.checkpoint.integrity import weight_bytes
from mixprec.compress import stream
from mixprec.compress.inputs import mean_squares
from mixprec.contrib.export import TARGETS
from mixprec.core import artifacts
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.gguf.names import gguf_names
from mixprec.models.model import Model
from mixprec.numerics.formats import GgmlFormat
from mixprec.plan import bits
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan, save_plan

if TYPE_CHECKING:
    from pareto_jobs import Pipelines

#: The form that files are counted in, where a pipeline writes no file of its own.
PACKED = "compressed-tensors"
#: Kind of plan -> jobs that it is made from.
_PLANNING = {
    "uniform": [],
    "additive": ["scores"],
    "exchanged": ["scores", "exchange_{}"],
    "whole": ["whole_scores"],
    "gguf": ["whole_scores"],
}
#: Samples of the calibration that only decide when tuning stops.
_VALIDATION = 4


def by_us(bench: Pipelines, job: Job, checkpoint: Path) -> dict[str, Any] | None:
    """Our pipeline, whose checkpoint is a packed one.

    What is tuned is solved and tuned on all samples but the last ones, which decide when to stop: it sees no more
    tokens than the others.
    """
    plan, settings = bench.plan(job), seeded(job)
    if plan is None:
        return None
    file = bench.work / "plans" / f"{job.name}@{job.size}.plan.json"
    save_plan(file, plan)
    request = {"form": PACKED, **settings, "model": bench.model, "plan": str(file), "out": str(checkpoint),
               "tokens": str(bench.reordered(job.draw)), "threads": bench.arguments.threads}  # fmt: skip
    if "tune" in settings:
        first, last = bench.split(job.draw, _VALIDATION)
        request |= {"tokens": str(first), "validation": str(last)}
        if "weigh" in settings:
            request["tuned_on"] = str(bench.weighted(job.draw, _VALIDATION, settings["weigh"]))
    found = once("pipeline_once.py", request)
    made = costs(bench, found, [before.format(job.size) for before in _PLANNING[job.pipeline.plan]])
    if job.pipeline.limit:
        least = {key: request[key] for key in ("model", "tokens", "threads")}
        products = settings.get("options", {}).get("products", "float32")
        made["limit"] = once("limit_once.py", least | {"dtype": products})
    types = Counter(str(line.format) for line in plan.modules.values())
    bits_taken = bits.account(plan, bench.inventory).effective_bits
    sizes = {"effective_bits": bits_taken, "file_bytes": weight_bytes(checkpoint), "format": request["form"]}
    return {**made, **sizes, "types": dict(sorted(types.items()))}


def by_peer(bench: Pipelines, job: Job, checkpoint: Path) -> dict[str, Any] | None:
    """A peer in its environment, with the very tokens that ours sees."""
    plan, one = bench.plan(job), job.pipeline
    if plan is None:
        return None
    file = bench.work / "plans" / f"{job.name}@{job.size}.{one.who}"
    file.parent.mkdir(exist_ok=True)
    artifacts.write_text(file, TARGETS[one.who](plan, bench.inventory, one.settings["method"]))
    settings = dict(one.settings.get("settings", {})) | ({"seed": job.draw} if job.draw else {})
    request = {"peer": one.who, "model": locate.resolve(bench.model), "out": str(checkpoint), "plan": str(file),
               "calibration": str(bench.reordered(job.draw)), "threads": bench.arguments.threads,
               **one.settings, "settings": settings}  # fmt: skip
    found = run_peer(request, bench.work / f"{job.name}@{job.size}#{job.draw}.log")
    if found is None:
        return None
    spent = costs(bench, found, [f"allocate_{one.plan}"] if one.plan in PEERS else [])
    return {**spent, "versions": found["versions"], **packed_sizes(bench, plan)}


def by_llamacpp(bench: Pipelines, job: Job, checkpoint: Path) -> dict[str, Any] | None:
    """llama.cpp's own mixture, from a file in 16 bits, with an importance matrix of the same tokens."""
    source, matrix = _in_gguf(bench)
    request = {"peer": "llamacpp", "method": "mixture", "model": str(source), "out": str(checkpoint),
               "imatrix": str(matrix), "mixture": job.size, "threads": bench.arguments.threads}  # fmt: skip
    found = run_peer(request, bench.work / f"{job.name}@{job.size}.log")
    if found is None:
        return None
    types, names = found["settings"]["types"], gguf_names(load_config(bench.model))
    linears = bench.inventory.linears
    taken = sum(m.weights * GgmlFormat(types[names[f"{m.address}.weight"]]).effective_bits for m in linears)
    return {
        **costs(bench, found, []),
        "versions": found["versions"],
        "effective_bits": taken / sum(m.weights for m in linears),
        "file_bytes": (checkpoint / "model.gguf").stat().st_size,
        "format": "gguf",
        "types": dict(Counter(types.values())),
    }


def _in_gguf(bench: Pipelines) -> tuple[Path, Path]:
    """The original as a GGUF file in its own type, in a folder, and the importance matrix of the calibration."""
    folder, matrix = bench.work / "original_gguf", bench.work / "imatrix.gguf"
    model = Model(bench.model)
    if not folder.is_dir():
        keep = build_plan(PlanSpec.model_validate({"default": "keep"}), bench.inventory, bench.model, "rtn")
        stream.compress(model, keep, folder, format=checkpoint_format("gguf"))
    if not matrix.is_file():
        opened = model.open_blocks(("embedding", "norm"))
        squares, count = mean_squares(opened, model.decoder, bench.calibration, matrix)
        write_imatrix(matrix, squares, model.config, tokens=count, chunk=512, datasets=["calibration"])
    return folder, matrix


def packed_sizes(bench: Pipelines, plan: Plan) -> dict[str, Any]:
    """Bits of the linears, and bytes of the file with packed codes and all else in 16 bits."""
    size = checkpoint_format(PACKED).bytes(plan, bench.inventory, load_config(bench.model))
    return {"effective_bits": bits.account(plan, bench.inventory).effective_bits, "file_bytes": size, "format": PACKED}


def seeded(job: Job) -> dict[str, Any]:
    """Settings of our pipeline, where a draw has seeds of its own."""
    settings = {key: value for key, value in job.pipeline.settings.items() if key != "method"}
    for name in ("tune", "tune_blocks"):
        if job.draw and name in settings:
            settings[name] = {**settings[name], "seed": job.draw}
    if job.draw and "guided" in settings.get("options", {}):
        settings["options"] = {"guided": {**settings["options"]["guided"], "seed": job.draw}}
    return settings


def costs(bench: Pipelines, found: Mapping[str, Any], before: list[str]) -> dict[str, Any]:
    """What a pipeline took, and the jobs ``before`` them that its plan is made from."""
    planning = sum(artifacts.read_json(bench.work / f"{job}.json")["cpu_seconds"] for job in before)
    return {
        "seconds": found["seconds_total"] if "seconds_total" in found else found["seconds"],
        "cpu_seconds": planning + found["cpu_seconds"],
        "cpu_seconds_plan": planning,
        "peak_bytes": found["peak_rss_bytes"],
    }


#: Who compresses otherwise than by a plan in a peer's syntax.
MAKERS: dict[str, Callable[..., dict[str, Any] | None]] = {OURS: by_us, "llamacpp": by_llamacpp}
