"""mixprec's methods beside the peers' packages: same model, same calibration tokens, same evaluation, in one run.

python benchmarks/compression.py [--quick] [--data FOLDER] [--only PART …] [--work FOLDER] --json OUT

SmolLM2-135M. Calibration: WikiText-2 validation, 32 x 512 tokens (--quick: 16 x 512). Evaluation: WikiText-2 test
(--passages of 512 tokens) and the bundled held-out traces; KL is that to the original. Peers run in environments of
their own (benchmarks/peers/build.sh); one whose environment is not there is not measured. Every job's outcome lies in
the work folder, so that a run that was stopped goes on.

Keys of OUT (null: not measured); jobs are named METHOD_FORMAT for ours, PEER_METHOD_FORMAT for peers' with their own
settings
    kl                  of each job, over both texts
    kl_ci               its 95% interval over passages
    kl_wikitext         the same on WikiText-2 test
    kl_traces           and on the traces
    perplexity          of each job on WikiText-2 test
    seconds             wall seconds of quantization alone: no imports; ours with reading and writing of files
    cpu_seconds         CPU seconds of the same, which other processes don't change much
    kl_ratio_gptq       our KL over the best peer's with GPTQ, the worse of w3g64 and w4g64
    kl_ratio_gptq_w3g64    at 3 bits
    kl_ratio_gptq_w4g64    at 4 bits
    kl_ratio_awq        the same with AWQ
    kl_ratio_awq_w3g64  at 3 bits
    kl_ratio_awq_w4g64  at 4 bits
    kl_ratio_gptaq_vs_gptq      our GPTAQ over our GPTQ at w3g64
    kl_difference_gptaq_vs_gptq_ci    95% interval over passages of the paired difference of their KLs
    kl_ratio_gptq_vs_rtn_wikitext     our GPTQ over RTN at w3g64 on the kind of text that it was calibrated on
    kl_ratio_gptq_vs_rtn_traces       and on another kind
    ppl_ratio_sparsegpt_50      perplexity of our SparseGPT over llm-compressor's at 50%
    ppl_ratio_sparsegpt_24      at 2:4
    speedup_gptq_vs_llmcompressor     its seconds over ours at w3g64, as many threads each, one after the other; null
                                where other processes took the cores away
    speedup_gptq_vs_gptqmodel   the same for GPTQModel
    cpu_speedup_gptq_vs_llmcompressor    the same in CPU seconds
    cpu_speedup_gptq_vs_gptqmodel        the same in CPU seconds
    peak_bytes_over_block       peak resident memory of our GPTQ run above what it was before, over a block's bytes
    peak_bytes_8b_shape         the same in bytes, GPTQ w3g128 of three blocks in the shape of R1-Distill-Llama-8B,
                                random weights, 32 x 512 tokens, float32
    seconds_8b_shape_per_block  wall seconds a block of that run
    seconds_8b_shape_extrapolated     times 32 blocks: extrapolated, not run
    perplexity_original         of the uncompressed model on WikiText-2 test
    samples             calibration samples of 512 tokens
    passages            passages of WikiText-2 test, 512 tokens each
    threads             threads of every job
    quick               whether this was a quick run
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("w3g64", "w4g64")
#: Ours: name -> method, format, sparsity.
OURS = {
    **{f"{method}_{form}": (method, form, None) for form in FORMATS for method in ("rtn", "gptq", "gptaq", "awq")},
    **{f"awq_released_{form}": ("awq", form, None) for form in FORMATS},
    "anyk_any4g64": ("anyk", "any4g64", None),
    "anyk_any3g64": ("anyk", "any3g64", None),
    **{f"{method}_50": (method, "keep", "0.5") for method in ("sparsegpt", "wanda", "magnitude")},
    "sparsegpt_24": ("sparsegpt", "keep", "2:4"),
}
#: Settings of ours that aren't the defaults: q and k unclipped, as in released AWQ.
SETTINGS = {f"awq_released_{form}": {"clip": "released"} for form in FORMATS}
#: Peers: name -> peer, method, format, sparsity.
THEIRS = {
    **{f"llmcompressor_{m}_{form}": ("llmcompressor", m, form, None) for m in ("gptq", "awq") for form in FORMATS},
    **{f"gptqmodel_gptq_{form}": ("gptqmodel", "gptq", form, None) for form in FORMATS},
    "llmcompressor_sparsegpt_50": ("llmcompressor", "sparsegpt", "keep", "0.5"),
    "llmcompressor_sparsegpt_24": ("llmcompressor", "sparsegpt", "keep", "2:4"),
    "gptqmodel_gptaq_w3g64": ("gptqmodel", "gptaq", "w3g64", None),
    "gptqmodel_awq_w4g64": ("gptqmodel", "awq", "w4g64", None),
}
#: What is evaluated on.
PARTS = ("both", "wikitext", "traces")
#: Blocks of the checkpoint in the shape of an 8B model.
LARGE_BLOCKS = 3
QUICK_OURS = ("rtn_w3g64", "gptq_w3g64", "gptaq_w3g64", "awq_w3g64", "sparsegpt_50")
QUICK_THEIRS = ("llmcompressor_gptq_w3g64",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 samples, w3g64 and SparseGPT, one peer")
    parser.add_argument("--data", default=os.environ.get("MIXPREC_DATA") or str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passages", type=int, default=16, help="passages of 512 tokens of WikiText test")
    parser.add_argument("--only", nargs="*", help="jobs by name, such as gptq_w3g64 llmcompressor_gptq_w3g64")
    parser.add_argument("--work", default="runs/benchmark_compression", help="outcomes of single jobs, kept")
    parser.add_argument("--json", required=True, help="where the figures go")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    bench = Bench(arguments)
    ours = QUICK_OURS if arguments.quick else tuple(OURS)
    theirs = QUICK_THEIRS if arguments.quick else tuple(THEIRS)
    wanted = arguments.only or ("original", *ours, *theirs, *(() if arguments.quick else ("large",)))
    # Jobs that are compared stand side by side: the machine's speed may drift.
    for name in arguments.only or sorted(wanted, key=place):
        bench.job(name)
    machine.write(arguments.json, __file__, bench.figures())


def place(name: str) -> tuple[int, str]:
    """3 bits first, then pruning, 4 bits, the rest; those of one method together."""
    method, form, sparsity = OURS.get(name) or THEIRS.get(name, ("", "", "", None))[1:]
    order = ("", "w3g64", "keep", "w4g64")
    return order.index(form) if form in order and name != "large" else len(order), f"{method}{sparsity}{name}"


class Bench:
    """The model, the calibration tokens and the evaluation that all jobs share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from mixprec.calibration import data
        from mixprec.calibration.spec import CalibrationSpec
        from mixprec.core import artifacts
        from mixprec.models.locate import BUNDLED
        from mixprec.models.model import Model

        torch.set_num_threads(arguments.threads)
        self.arguments = arguments
        self.samples = 16 if arguments.quick else 32
        self.work = Path(arguments.work) / f"{self.samples}x512"
        self.work.mkdir(parents=True, exist_ok=True)
        self.original = Model(BUNDLED).load()
        text = str(Path(arguments.data) / "calibration" / "wikitext2_tokenized_valid.txt")
        spec = CalibrationSpec.model_validate({"text": text, "samples": self.samples, "tokens": 512})
        self.calibration = data.load(spec, self.original.encoder, str, self.original.context)
        self.tokens = self.work / "calibration.safetensors"
        artifacts.save_tensors(self.tokens, {"tokens": self.calibration.tokens})
        self.reference: list[Any] | None = None

    # One job

    def job(self, name: str) -> None:
        """Compress and evaluate; what is done already is kept."""
        done = self.work / f"{name}.json"
        if done.is_file():
            return
        print(f"== {name}", file=sys.stderr, flush=True)
        if name == "large":
            done.write_text(json.dumps(self.large(), indent=2) + "\n", encoding="utf-8")
            return
        checkpoint = self.work / name
        if name == "original":
            from mixprec.models import locate
            from mixprec.models.locate import BUNDLED

            row, where = {"seconds": None}, Path(locate.resolve(BUNDLED))
        else:
            found = self.ours(name, checkpoint) if name in OURS else self.theirs(name, checkpoint)
            if found is None:
                return
            row, where = found, checkpoint
        row |= self.evaluate(where)
        done.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
        subprocess.run(["rm", "-rf", str(checkpoint)], check=True)

    def ours(self, name: str, checkpoint: Path) -> dict[str, Any]:
        """In a process of its own, so that its peak memory is its own."""
        method, form, sparsity = OURS[name]
        job = {"method": method, "format": form, "sparsity": sparsity, "tokens": str(self.tokens),
               "out": str(checkpoint), "threads": self.arguments.threads,
               "options": SETTINGS.get(name, {})}  # fmt: skip
        return self.once(name, job)

    @staticmethod
    def once(name: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """compress_once.py with this job."""
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("compress_once.py")), json.dumps(job)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def large(self) -> dict[str, Any]:
        """Three blocks in the shape of an 8B model: memory and time."""
        import torch
        from large_checkpoint import SHAPE, write

        from mixprec.core import artifacts
        from mixprec.models.config import load_config

        source, tokens = self.work / "large_source", self.work / "large.safetensors"
        write(source, LARGE_BLOCKS)
        vocabulary = load_config(SHAPE).vocab_size
        ids = torch.randint(vocabulary, (32, 512), generator=torch.Generator().manual_seed(0))
        artifacts.save_tensors(tokens, {"tokens": ids})
        job = {"method": "gptq", "format": "w3g128", "sparsity": None, "tokens": str(tokens), "model": str(source),
               "out": str(self.work / "large"), "threads": self.arguments.threads}  # fmt: skip
        try:
            return self.once("large", job)
        finally:
            subprocess.run(["rm", "-rf", str(source), job["out"]], check=True)

    def evaluate(self, checkpoint: Path) -> dict[str, Any]:
        """Perplexity and KL on WikiText test and on the held-out traces."""
        from mixprec import pipeline
        from mixprec.evaluate import fidelity, metrics, passages
        from mixprec.models.head import Head
        from mixprec.models.model import Model
        from mixprec.recipe import TracesSpec

        spec = TracesSpec(source="bundled:held_out")
        traces, _ = passages.from_traces(
            pipeline.annotate_traces(spec, "bundled:held_out"), self.original.encoder, self.original.context
        )
        wiki = str(Path(self.arguments.data) / "calibration" / "wikitext2_raw_test.txt")
        text = passages.from_text(wiki, self.original.encoder, 512, self.arguments.passages)
        everything, head = [*traces, *text], Head.of(self.original.model)
        if self.reference is None:
            self.reference = list(fidelity.hidden_states(self.original, everything, "original"))
        loaded = Model(checkpoint).load()
        hidden = fidelity.hidden_states(loaded, everything, "evaluate")
        found = fidelity.compare(everything, hidden, Head.of(loaded.model), self.reference, head)
        on = {"traces": found[: len(traces)], "wikitext": found[len(traces) :], "both": found}
        return {
            "evaluation": {name: metrics.summarise(results) for name, results in on.items()},
            "kl_by_passage": [{"tokens": len(r.kl), "kl_sum": float(r.kl.sum())} for r in found],
        }

    def theirs(self, name: str, checkpoint: Path) -> dict[str, Any] | None:
        """A peer in its environment, with its own settings; None where that is not there or the peer fails."""
        from mixprec.contrib.peers import client
        from mixprec.models import locate
        from mixprec.models.locate import BUNDLED
        from mixprec.numerics.formats import Format, parse_format

        peer, method, form, sparsity = THEIRS[name]
        format = parse_format(form)
        job: dict[str, Any] = {
            "peer": peer, "method": method, "model": locate.resolve(BUNDLED), "out": str(checkpoint),
            "calibration": str(self.tokens), "threads": self.arguments.threads,
        }  # fmt: skip
        if isinstance(format, Format):
            job["format"] = {"bits": format.bits, "group_size": format.group_size, "symmetric": format.symmetric}
        if sparsity is not None:
            pattern = sparsity if ":" in sparsity else None
            job["sparsity"] = {"ratio": 0.5 if pattern else float(sparsity), "pattern": pattern}
        try:
            found = client.run_peer(job, log=self.work / f"{name}.log")
        except (client.PeerMissing, client.PeerFailed) as problem:
            print(f"{name}: not measured: {problem}", file=sys.stderr)
            return None
        return {"seconds": found["seconds_total"], "cpu_seconds": found["cpu_seconds"], "peer": found}

    # All jobs together

    def undisturbed(self, row: Mapping[str, Any]) -> bool:
        """Whether a job had its cores for itself: even loops on one thread use more than half of two."""
        return bool(row["cpu_seconds"] > 0.6 * self.arguments.threads * row["seconds"])

    def figures(self) -> dict[str, Any]:
        """The keys of the output, from the jobs that are done."""
        from mixprec.evaluate import metrics

        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.work.glob("*.json"))}
        large = found.pop("large", {})
        on = {part: {name: row["evaluation"][part] for name, row in found.items()} for part in PARTS}
        kl = {part: {name: entry["kl_mean"] for name, entry in on[part].items()} for part in PARTS}
        perplexity = {name: entry["perplexity"] for name, entry in on["wikitext"].items()}
        seconds, cpu = ({name: row.get(key) for name, row in found.items()} for key in ("seconds", "cpu_seconds"))
        figures: dict[str, Any] = {
            "kl": kl["both"],
            "kl_ci": {name: entry["kl_mean_ci"] for name, entry in on["both"].items()},
            "kl_wikitext": kl["wikitext"],
            "kl_traces": kl["traces"],
            "perplexity": perplexity,
            "seconds": seconds,
            "cpu_seconds": cpu,
        }
        for method in ("gptq", "awq"):
            ratios = []
            for form in FORMATS:
                peers = [kl["both"].get(name) for name, job in THEIRS.items() if job[1:3] == (method, form)]
                ratios.append(ratio(kl["both"].get(f"{method}_{form}"), least(peers)))
            known = [each for each in ratios if each is not None]
            figures[f"kl_ratio_{method}"] = max(known) if len(known) == len(FORMATS) else None
            figures |= {f"kl_ratio_{method}_{form}": one for form, one in zip(FORMATS, ratios, strict=True)}
        figures["kl_ratio_gptaq_vs_gptq"] = ratio(kl["both"].get("gptaq_w3g64"), kl["both"].get("gptq_w3g64"))
        pair = [found[name]["kl_by_passage"] for name in ("gptaq_w3g64", "gptq_w3g64") if name in found]
        figures["kl_difference_gptaq_vs_gptq_ci"] = metrics.kl_difference(*pair)["ci"] if len(pair) == 2 else None
        for part in ("wikitext", "traces"):
            own, other = kl[part].get("gptq_w3g64"), kl[part].get("rtn_w3g64")
            figures[f"kl_ratio_gptq_vs_rtn_{part}"] = ratio(own, other)
        for share in ("50", "24"):
            own, other = perplexity.get(f"sparsegpt_{share}"), perplexity.get(f"llmcompressor_sparsegpt_{share}")
            figures[f"ppl_ratio_sparsegpt_{share}"] = ratio(own, other)
        for peer in ("llmcompressor", "gptqmodel"):
            for prefix, taken in (("", seconds), ("cpu_", cpu)):
                pair = [name for name in ("gptq_w3g64", f"{peer}_gptq_w3g64") if name in found]
                fair = len(pair) == 2 and (prefix or all(self.undisturbed(found[name]) for name in pair))
                figures[f"{prefix}speedup_gptq_vs_{peer}"] = ratio(taken[pair[1]], taken[pair[0]]) if fair else None
        each = large["seconds"] / LARGE_BLOCKS if large else None
        return figures | {
            "peak_bytes_over_block": found.get("gptq_w3g64", {}).get("peak_bytes_over_block"),
            "peak_bytes_8b_shape": large.get("peak_bytes"),
            "seconds_8b_shape_per_block": each,
            "seconds_8b_shape_extrapolated": None if each is None else 32 * each,
            "perplexity_original": perplexity.get("original"),
            "samples": self.samples,
            "passages": self.arguments.passages,
            "threads": self.arguments.threads,
            "quick": self.arguments.quick,
        }


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


if __name__ == "__main__":
    main()
