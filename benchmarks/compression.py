"""mixprec's methods beside the peers' packages: same model, same calibration tokens, same evaluation, in one run.

python benchmarks/compression.py [--quick] [--data FOLDER] [--only PART …] [--work FOLDER] --json OUT

SmolLM2-135M. Calibration: WikiText-2 validation, 32 x 512 tokens (--quick: 16 x 512). Evaluation: WikiText-2 test
(--passages of 512 tokens) and the bundled held-out traces; KL is that to the original, the mean over both texts' tokens
where a key doesn't say which. Peers run in environments of their own (benchmarks/peers/build.sh); one whose environment
is not there is not measured. Every job's outcome lies in the work folder, so that a run that was stopped goes on.

Keys of OUT (null: not measured); METHOD_FORMAT is such as gptq_w3g64
    kl_METHOD_FORMAT            KL of ours; _wikitext and _traces: on one of the two; _ci: its 95% interval
    kl_PEER_METHOD_FORMAT       the same of a peer's
    kl_ratio_gptq, kl_ratio_awq worst ratio over w3g64 and w4g64 of our KL to the best peer's of the same method
    kl_ratio_gptaq_vs_gptq      our GPTAQ over our GPTQ at w3g64; _ci: interval of their paired difference
    kl_ratio_gptq_vs_rtn_w3g64_wikitext, _traces
                                our GPTQ over RTN, on the text that it was calibrated on and on another kind
    ppl_METHOD_FORMAT           perplexity on WikiText test; ppl_original: of the uncompressed model
    ppl_ratio_sparsegpt_50, ppl_ratio_sparsegpt_24
                                perplexity on WikiText test of our SparseGPT over llm-compressor's, unstructured and 2:4
    seconds_METHOD_FORMAT       wall seconds of quantization alone: no imports; ours with reading and writing of files
    speedup_gptq_vs_llmcompressor, speedup_gptq_vs_gptqmodel
                                their seconds over ours, w3g64, with the same number of threads, one after the other
    peak_bytes_8b_shape, seconds_8b_shape_per_block
                                GPTQ w3g128 of three blocks in the shape of R1-Distill-Llama-8B, random weights,
                                32 x 512 tokens, float32: peak resident memory above what it was before, wall seconds
                                a block
    seconds_8b_shape_extrapolated
                                the same times 32 blocks: extrapolated, not run
    peak_bytes_over_block       peak resident memory of our GPTQ run above what it was before, over a block's bytes
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

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
FORMATS = ("w3g64", "w4g64")
#: Ours: name -> method, format, sparsity.
OURS = {
    **{f"{method}_{form}": (method, form, None) for form in FORMATS for method in ("rtn", "gptq", "gptaq", "awq")},
    "anyk_any4g64": ("anyk", "any4g64", None),
    "anyk_any3g64": ("anyk", "any3g64", None),
    **{f"{method}_50": (method, "keep", "0.5") for method in ("sparsegpt", "wanda", "magnitude")},
    "sparsegpt_24": ("sparsegpt", "keep", "2:4"),
}
#: Peers: name -> peer, method, format, sparsity.
THEIRS = {
    **{f"llmcompressor_{m}_{form}": ("llmcompressor", m, form, None) for m in ("gptq", "awq") for form in FORMATS},
    **{f"gptqmodel_gptq_{form}": ("gptqmodel", "gptq", form, None) for form in FORMATS},
    "llmcompressor_sparsegpt_50": ("llmcompressor", "sparsegpt", "keep", "0.5"),
    "llmcompressor_sparsegpt_24": ("llmcompressor", "sparsegpt", "keep", "2:4"),
    "gptqmodel_gptaq_w3g64": ("gptqmodel", "gptaq", "w3g64", None),
    "gptqmodel_awq_w4g64": ("gptqmodel", "awq", "w4g64", None),
}
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
    figures = bench.figures()
    Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def place(name: str) -> tuple[int, str]:
    """3 bits first, then pruning, 4 bits, the rest; those of one method together."""
    method, form, sparsity = OURS.get(name) or THEIRS.get(name, ("", "", "", None))[1:]
    order = ("", "w3g64", "keep", "w4g64")
    return order.index(form) if form in order and name != "large" else len(order), f"{method}{sparsity}{name}"


class Bench:
    """The model, the calibration tokens and the evaluation that all jobs share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from mixprec import artifacts, models
        from mixprec.calibration import data
        from mixprec.calibration.spec import CalibrationSpec

        torch.set_num_threads(arguments.threads)
        self.arguments = arguments
        self.samples = 16 if arguments.quick else 32
        self.work = Path(arguments.work) / f"{self.samples}x512"
        self.work.mkdir(parents=True, exist_ok=True)
        self.original = models.load(models.BUNDLED)
        text = str(Path(arguments.data) / "calibration" / "wikitext2_tokenized_valid.txt")
        spec = CalibrationSpec.model_validate({"text": text, "samples": self.samples, "tokens": 512})
        self.calibration = data.load(spec, self.original.tokenizer, str, self.original.context)
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
            from mixprec import models

            row, where = {"seconds": None}, Path(models.resolve(models.BUNDLED))
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
               "out": str(checkpoint), "threads": self.arguments.threads}  # fmt: skip
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

        from mixprec import artifacts, models

        source, tokens = self.work / "large_source", self.work / "large.safetensors"
        write(source, LARGE_BLOCKS)
        vocabulary = models.load_config(SHAPE).vocab_size
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
        from mixprec import models, pipeline
        from mixprec.evaluate import fidelity, metrics, passages
        from mixprec.recipe import TracesSpec

        spec = TracesSpec(source="bundled:held_out")
        traces, _ = passages.from_traces(
            pipeline.annotate_traces(spec, "bundled:held_out"), self.original.tokenizer, self.original.context
        )
        wiki = str(Path(self.arguments.data) / "calibration" / "wikitext2_raw_test.txt")
        text = passages.from_text(wiki, self.original.tokenizer, 512, self.arguments.passages)
        everything, head = [*traces, *text], models.head(self.original.model)
        if self.reference is None:
            self.reference = list(fidelity.hidden_states(self.original, everything, "original"))
        loaded = models.load(str(checkpoint))
        hidden = fidelity.hidden_states(loaded, everything, "evaluate")
        found = fidelity.compare(everything, hidden, models.head(loaded.model), self.reference, head)
        on = {"traces": found[: len(traces)], "wikitext": found[len(traces) :], "both": found}
        return {
            "evaluation": {name: metrics.summarise(results) for name, results in on.items()},
            "kl_by_passage": [{"tokens": len(r.kl), "kl_sum": float(r.kl.sum())} for r in found],
        }

    def theirs(self, name: str, checkpoint: Path) -> dict[str, Any] | None:
        """A peer in its environment, with its own settings; None where that is not there or the peer fails."""
        import client

        from mixprec import models
        from mixprec.numerics.formats import Format, parse_format

        peer, method, form, sparsity = THEIRS[name]
        format = parse_format(form)
        job: dict[str, Any] = {
            "peer": peer, "method": method, "model": models.resolve(models.BUNDLED), "out": str(checkpoint),
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

    def figures(self) -> dict[str, Any]:
        """The keys of the output, from the jobs that are done."""
        rows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.work.glob("*.json"))}

        def kl(name: str, on: str = "both") -> float | None:
            return rows[name]["evaluation"][on]["kl_mean"] if name in rows else None

        def perplexity(name: str) -> float | None:
            return rows[name]["evaluation"]["wikitext"]["perplexity"] if name in rows else None

        def seconds(name: str) -> float | None:
            return rows[name]["seconds"] if name in rows else None

        figures: dict[str, Any] = {}
        for name in (*OURS, *THEIRS):
            figures[f"kl_{name}"] = kl(name)
            figures[f"kl_{name}_ci"] = rows[name]["evaluation"]["both"]["kl_mean_ci"] if name in rows else None
            figures[f"kl_{name}_wikitext"], figures[f"kl_{name}_traces"] = kl(name, "wikitext"), kl(name, "traces")
            figures[f"ppl_{name}"] = perplexity(name)
            figures[f"seconds_{name}"] = seconds(name)
        for method in ("gptq", "awq"):
            peers = {
                form: [kl(n) for n, (_, m, f, _) in THEIRS.items() if (m, f) == (method, form)] for form in FORMATS
            }
            ratios = [ratio(kl(f"{method}_{form}"), least(peers[form])) for form in FORMATS]
            figures[f"kl_ratio_{method}"] = None if None in ratios else max(ratios)
            figures |= {f"kl_ratio_{method}_{form}": one for form, one in zip(FORMATS, ratios, strict=True)}
        figures["kl_ratio_gptaq_vs_gptq"] = ratio(kl("gptaq_w3g64"), kl("gptq_w3g64"))
        figures["kl_ratio_gptaq_vs_gptq_ci"] = self.paired(rows, "gptaq_w3g64", "gptq_w3g64")
        for on in ("wikitext", "traces"):
            figures[f"kl_ratio_gptq_vs_rtn_w3g64_{on}"] = ratio(kl("gptq_w3g64", on), kl("rtn_w3g64", on))
        for sparsity in ("50", "24"):
            own, other = perplexity(f"sparsegpt_{sparsity}"), perplexity(f"llmcompressor_sparsegpt_{sparsity}")
            figures[f"ppl_ratio_sparsegpt_{sparsity}"] = ratio(own, other)
        for peer in ("llmcompressor", "gptqmodel"):
            name = f"speedup_gptq_vs_{peer}"
            figures[name] = ratio(seconds(f"{peer}_gptq_w3g64"), seconds("gptq_w3g64"))
        own = rows.get("gptq_w3g64", {})
        figures["peak_bytes_over_block"] = own.get("peak_bytes_over_block")
        large = rows.get("large", {})
        each = large["seconds"] / LARGE_BLOCKS if large else None
        figures["peak_bytes_8b_shape"], figures["seconds_8b_shape_per_block"] = large.get("peak_bytes"), each
        figures["seconds_8b_shape_extrapolated"] = None if each is None else 32 * each
        return figures | {
            "ppl_original": self.perplexity_of_original(rows), "samples": self.samples, "tokens": self.samples * 512,
            "threads": self.arguments.threads, "quick": self.arguments.quick,
        }  # fmt: skip

    @staticmethod
    def perplexity_of_original(rows: Mapping[str, Any]) -> float | None:
        return rows["original"]["evaluation"]["wikitext"]["perplexity"] if "original" in rows else None

    @staticmethod
    def paired(rows: Mapping[str, Any], first: str, second: str) -> list[float] | None:
        """95% interval, over passages, of the difference of two mean KLs."""
        from mixprec.evaluate import metrics

        if first not in rows or second not in rows:
            return None
        return list(metrics.kl_difference(rows[first]["kl_by_passage"], rows[second]["kl_by_passage"])["ci"])


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


if __name__ == "__main__":
    sys.path.insert(0, str(PEERS))
    main()
