"""What a model is calibrated on: reasoning or plain text, at equal tokens.

python benchmarks/calibration_text.py [--quick] [--draws 3] [--data FOLDER] [--work FOLDER] --json OUT

SmolLM2-135M in w3g64 by GPTQ, and with half of its weights gone by SparseGPT. RAC (arXiv 2509.12464) prunes reasoning
models on reasoning, others calibrate on plain text. Two texts, one of each kind: ``reasoning``, the 120 traces of
R1-Distill-Llama-8B; ``plain``, WikiText-2 test, untokenized. Every second trace, and the first half of the text,
calibrate; what is held out is of the rest, so that no problem and no article is on both sides. A draw has other samples
of the same number of tokens. Calibrations of one draw differ in nothing but their text.

Every compressed model is compared with the original on held-out passages of both kinds. Intervals (95%, ``_ci``)
are over passages and draws. Outcomes stay in the work folder: what was stopped goes on.

Keys of OUT
    kl              (method, calibration, held-out text) mean KL to the original over the draws, nats per token
    kl_ci           95% intervals of these
    kl_draws        of each draw
    over_plain      (method, calibration, held-out text) KL over that of the model calibrated on plain text: below 1 the
                    calibration is better there
    over_plain_ci    95% intervals of these, passages resampled together
    table           the ratios as a table
    calibration_tokens    tokens of every calibration
    samples         calibration samples of 512 tokens
    passages        held-out passages of each kind
    passage_tokens    their length
    looping         (a text) share of windows of 512 tokens that repeat themselves, which are not drawn
    draws           of each calibration
    cpu_seconds     of all compressions
    threads         of every measurement
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import bench
import machine
import torch
from intervals import divided, interval

from mixprec.calibration import data
from mixprec.calibration.spec import CalibrationSpec
from mixprec.core import artifacts
from mixprec.evaluate import passages
from mixprec.evaluate.passages import Passage
from mixprec.models.locate import BUNDLED
from mixprec.traces import store

ROOT = Path(__file__).resolve().parents[1]
CALIBRATIONS = ("plain", "reasoning")
#: Method -> what is made by it.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "gptq": {"format": "w3g64", "sparsity": None},
    "sparsegpt": {"format": "keep", "sparsity": 0.5},
}
WORDS = {"plain": "plain text", "reasoning": "reasoning"}
MADE = {"gptq": "GPTQ w3g64", "sparsegpt": "SparseGPT 50%"}
TRACES = "r1_distill_llama_8b_awq_traces/traces.jsonl"
LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tokens: under 20 CPU minutes")
    parser.add_argument("--draws", type=int, default=3)
    data_folder = Path(os.environ.get("MIXPREC_DATA") or ROOT.parent / "shared/data")
    parser.add_argument("--data", type=Path, default=data_folder)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mixprec-calibration-text"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", required=True)
    arguments = parser.parse_args()
    sizes = (8, 6, 256) if arguments.quick else (32, 12, 512)
    for name, value in zip(("samples", "passages", "length"), sizes, strict=True):
        setattr(arguments, name, value)
    arguments.model = BUNDLED
    jobs = Texts(arguments)
    names = [f"{method}-{text}" for method in METHODS for text in CALIBRATIONS]
    for draw in range(arguments.draws):
        for name in names:
            jobs.job(f"{name}#{draw}")
    rows = {
        name: [artifacts.read_object(jobs.work / f"{name}#{draw}.json") for draw in range(arguments.draws)]
        for name in names
    }
    machine.write(arguments.json, __file__, told(rows) | jobs.about, [arguments.data, arguments.work])


class Texts(bench.Bench):
    """One compression and its evaluation for each method, text and draw."""

    def outcome(self, name: str) -> dict[str, Any]:
        what, _, draw = name.partition("#")
        method, _, text = what.partition("-")
        checkpoint = self.work / f"checkpoint_{os.getpid()}"  # other processes may do other jobs
        shutil.rmtree(checkpoint, ignore_errors=True)
        job = {"method": method, **METHODS[method], "tokens": str(self.samples(text, int(draw))),
               "out": str(checkpoint), "model": self.model, "threads": self.arguments.threads}  # fmt: skip
        row = bench.once("compress_once.py", job)
        found = iter(self.compared(checkpoint))
        kinds = {kind: [next(found) for _ in each] for kind, each in self.held_out.items()}
        shutil.rmtree(checkpoint)
        return row | {kind: bench.by_passage(results) for kind, results in kinds.items()}

    def samples(self, text: str, draw: int) -> Path:
        """The calibration samples of a text and a draw."""
        path = self.work / f"{text}_{draw}.safetensors"
        if not path.is_file():
            source = {"text": str(self.plain[0])} if text == "plain" else {"traces": str(self.reasoning[0])}
            words = {**source, "samples": self.arguments.samples, "tokens": LENGTH, "seed": draw}
            drawn = data.load(CalibrationSpec.model_validate(words), self.original.encoder, str, self.original.context)
            artifacts.save_tensors(path, {"tokens": drawn.tokens})
            artifacts.write_json(path.with_suffix(".sources.json"), drawn.described)
        return path

    @cached_property
    def held_out(self) -> dict[str, list[Passage]]:
        """Held-out passages of each kind."""
        length, encoder = self.arguments.length, self.original.encoder
        outputs = [encoder(each.output)[0] for each in store.load(str(self.reasoning[1]))]
        found = {
            "plain": passages.from_text(str(self.plain[1]), encoder, length)[:-1],  # the last is shorter
            "reasoning": [Passage(torch.tensor(ids[:length])) for ids in outputs if len(ids) >= length],
        }
        return {kind: spread(each, self.arguments.passages) for kind, each in found.items()}

    @property
    def everything(self) -> list[Passage]:
        return [passage for each in self.held_out.values() for passage in each]

    @cached_property
    def plain(self) -> tuple[Path, Path]:
        """The two halves of the plain text."""
        lines = artifacts.read_text(self.arguments.data / "calibration" / "wikitext2_raw_test.txt").splitlines(True)
        paths = self.work / "plain_first.txt", self.work / "plain_last.txt"
        for path, half in zip(paths, (lines[: len(lines) // 2], lines[len(lines) // 2 :]), strict=True):
            artifacts.write_text(path, "".join(half))
        return paths

    @cached_property
    def reasoning(self) -> tuple[Path, Path]:
        """Every second trace, and the others; without annotations."""
        rows = artifacts.read_jsonl(self.arguments.data / TRACES)
        paths = self.work / "reasoning_even.jsonl", self.work / "reasoning_odd.jsonl"
        for path, part in zip(paths, (rows[::2], rows[1::2]), strict=True):
            artifacts.write_jsonl(
                path, [{key: row[key] for key in ("id", "dataset", "prompt", "output")} for row in part]
            )
        return paths

    @property
    def about(self) -> dict[str, Any]:
        """What all was measured with."""
        return {
            "calibration_tokens": self.arguments.samples * LENGTH,
            "samples": self.arguments.samples,
            "passages": self.arguments.passages,
            "passage_tokens": self.arguments.length,
            "looping": {text: self._looping(text) for text in CALIBRATIONS},
            "draws": self.arguments.draws,
            "threads": self.arguments.threads,
        }

    def _looping(self, text: str) -> float:
        (source,) = artifacts.read_json(self.work / f"{text}_0.sources.json")["sources"]
        return float(source["windows_looping"] / source["windows"])


def spread(passages: Sequence[Passage], count: int) -> list[Passage]:
    """So many of them, evenly: neighbours are of one article or of one data set."""
    step = len(passages) // count
    return list(passages[step // 2 :: step][:count])


def told(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures, of ``rows``: METHOD-CALIBRATION -> one for each draw."""
    figures: dict[str, Any] = {key: {} for key in ("kl", "kl_ci", "kl_draws", "over_plain", "over_plain_ci")}
    for method in METHODS:
        plain = rows[f"{method}-plain"]
        for text in CALIBRATIONS:
            draws = rows[f"{method}-{text}"]
            for kind in CALIBRATIONS:
                own, other = means(draws, kind), means(plain, kind)
                values = {
                    "kl": sum(own) / len(own),
                    "kl_ci": interval([draws], lambda value: value, part=kind),
                    "kl_draws": own,
                }
                if text != "plain":
                    values["over_plain"] = sum(own) / sum(other)
                    values["over_plain_ci"] = interval([draws, plain], divided, part=kind)
                for key, value in values.items():
                    figures[key].setdefault(method, {}).setdefault(text, {})[kind] = value
    seconds = sum(row["cpu_seconds"] for draws in rows.values() for row in draws)
    return figures | {"table": table(figures), "cpu_seconds": seconds}


def means(draws: Sequence[Mapping[str, Any]], kind: str) -> list[float]:
    """KL per token on held-out text of a kind, of each draw."""
    return [sum(p["kl_sum"] for p in row[kind]) / sum(p["tokens"] for p in row[kind]) for row in draws]


def table(figures: Mapping[str, Any]) -> str:
    """KL, and its ratio to calibration on plain text, by held-out text."""
    rows = ["| | calibrated on | " + " | ".join(f"KL on {WORDS[kind]}" for kind in CALIBRATIONS) + " |"]
    rows.append("|---|---|" + "--:|" * len(CALIBRATIONS))
    for method in METHODS:
        for text in CALIBRATIONS:
            cells = [f"{figures['kl'][method][text][kind]:.3f}" for kind in CALIBRATIONS]
            if text != "plain":
                for number, kind in enumerate(CALIBRATIONS):
                    low, high = figures["over_plain_ci"][method][text][kind]
                    cells[number] += f" ({figures['over_plain'][method][text][kind]:.2f} [{low:.2f}, {high:.2f}])"
            rows.append(f"| {MADE[method]} | {WORDS[text]} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
