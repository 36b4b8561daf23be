"""The jobs of pareto.py: every pipeline from the original model to its row."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import machine
import pareto_rows
from allocation import PEERS
from bench import HERE, Bench, by_passage, once, run_peer
from pareto_pipelines import OURS, UNIFORM, Job, Pipeline
from pareto_rows import Row

from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf.imatrix import write_imatrix
from mixprec.checkpoint.integrity import weight_bytes
from mixprec.compress import RULES as SOLVING
from mixprec.compress import stream
from mixprec.compress.inputs import mean_squares
from mixprec.contrib.export import TARGETS
from mixprec.contrib.peers import RULES as ASKING
from mixprec.core import artifacts
from mixprec.evaluate import RULES as EVALUATING
from mixprec.evaluate.passages import Passage
from mixprec.joint import RULES as EXCHANGING
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.gguf.names import gguf_names
from mixprec.models.model import Model
from mixprec.numerics.formats import GgmlFormat
from mixprec.plan import bits
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan, save_plan
from mixprec.sensitivity import RULES as SCORING

#: The form that files are counted in, where a pipeline writes no file of its own.
_PACKED = "compressed-tensors"
#: Calibration samples that KL is measured on too.
_SEEN = 8


class Pipelines(Bench):
    """Whole pipelines: ours in processes of their own, peers in their environments."""

    def outcome(self, name: str) -> dict[str, Any] | None:
        """A row, or what rows are made from; None where a peer is missing or fails."""
        if "@" not in name:
            return super().outcome(name)
        described = self.described(name)
        checkpoint, card = self.work / "made" / name, self.work / "made" / f"{name}.json"
        # What took hours is there still where an evaluation was stopped.
        known = artifacts.read_json(card) if card.is_file() and checkpoint.is_dir() else {}
        if known.get("fingerprint") != described["fingerprint"]:
            shutil.rmtree(checkpoint, ignore_errors=True)
            job = Job.parse(name)
            made = {OURS: self.by_us, "llamacpp": self.by_llamacpp}.get(job.pipeline.who, self.by_peer)(job, checkpoint)
            if made is None:
                return None
            known = described | made
            artifacts.write_json(card, known)
        row = known | self.evaluate(checkpoint)
        shutil.rmtree(checkpoint)
        card.unlink()
        return row

    def is_done(self, outcome: Path) -> bool:
        if "@" not in outcome.stem:
            return super().is_done(outcome)
        return outcome.stem in self.rows([outcome.stem])

    # Rows

    def rows(self, names: Iterable[str]) -> dict[str, Row]:
        """Of these jobs, those that are done: in the work folder, or in the file of rows."""
        wanted = {name: self.described(name)["fingerprint"] for name in names}
        found = [artifacts.read_json(path) for path in sorted(self.work.glob("*@*.json"))]
        return pareto_rows.good([*pareto_rows.load(Path(self.arguments.rows)), *found], wanted)

    def keep(self) -> None:
        """Put the rows of the work folder into the file of rows."""
        file = Path(self.arguments.rows)
        made = [artifacts.read_json(path) for path in sorted(self.work.glob("*@*.json"))]
        pareto_rows.save(file, pareto_rows.merged(pareto_rows.load(file), made))

    def described(self, name: str) -> Row:
        """What a row says of its job before it is done."""
        job = Job.parse(name)
        one = job.pipeline
        settings = {"who": one.who, "plan": one.plan, **one.settings}
        parts = [job.name, job.size, job.draw, settings, self._made_by(one), self._identity]
        return {
            "job": name,
            "fingerprint": artifacts.fingerprint(*parts)[:16],
            "settings": settings,
            "model": Path(self.model).name,
            "samples": self.arguments.samples,
            "passages": self.arguments.passages,
            "threads": self.arguments.threads,
            "machine": self._machine,
        }

    @cached_property
    def _identity(self) -> list[Any]:
        """What all rows depend on."""
        return [Model(self.model).identity, self.calibration.digest, self.arguments.passages, EVALUATING]

    @cached_property
    def _machine(self) -> str:
        facts = machine.facts()
        return f"{facts['processor']}, {facts['cores']} cores"

    def _made_by(self, pipeline: Pipeline) -> Any:
        if pipeline.who == OURS:
            return [SOLVING, SCORING, EXCHANGING]
        pins = sorted((HERE / "peers" / "pins").glob(f"{pipeline.who}.*txt"))
        return [ASKING, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in pins)]

    # Plans

    def plan(self, job: Job) -> Plan | None:
        """Formats of all modules; None where a peer's allocation is missing."""
        kind, method = job.pipeline.plan, job.pipeline.settings["method"]
        method = method if job.pipeline.who == OURS else "rtn"
        if kind == "uniform":
            spec = PlanSpec.model_validate({"default": UNIFORM[job.size], "method": method})
            return build_plan(spec, self.inventory, self.model, method)
        spec = {"effective_bits": float(job.size), "candidates": list(self.candidates)}
        if kind in PEERS:
            found = self.theirs(kind, float(job.size), BudgetSpec.model_validate(spec))
            return found and found.model_copy(update={"method": method})
        made = self.exchanged(job.size, spec) if kind == "exchanged" else self.additive(job.size, spec)
        return made.model_copy(update={"method": method})

    def sizes(self, plan: Plan) -> dict[str, Any]:
        """Bits of the linears, and bytes of the file with packed codes and all else in 16 bits."""
        size = checkpoint_format(_PACKED).bytes(plan, self.inventory, load_config(self.model))
        found = bits.account(plan, self.inventory).effective_bits
        return {"effective_bits": found, "file_bytes": size, "format": _PACKED}

    # From a plan to a checkpoint

    def by_us(self, job: Job, checkpoint: Path) -> dict[str, Any]:
        """Our pipeline, whose checkpoint is a packed one."""
        plan = self.plan(job)
        assert plan is not None
        file = self.work / "plans" / f"{job.name}@{job.size}.plan.json"
        save_plan(file, plan)
        settings = {key: value for key, value in job.pipeline.settings.items() if key != "method"}
        request = {"plan": str(file), "tokens": str(self.reordered(job.draw)), "out": str(checkpoint), "form": _PACKED,
                   "model": self.model, "threads": self.arguments.threads, **settings}  # fmt: skip
        found = once("compress_once.py", request)
        costs = self.costs(found["seconds"], found, None if job.pipeline.plan == "uniform" else "scores")
        return {**costs, **self.sizes(plan), "file_bytes": weight_bytes(checkpoint)}

    def by_peer(self, job: Job, checkpoint: Path) -> dict[str, Any] | None:
        """A peer in its environment, with the very tokens that ours sees."""
        plan = self.plan(job)
        if plan is None:
            return None
        one = job.pipeline
        file = self.work / "plans" / f"{job.name}@{job.size}.{one.who}"
        file.parent.mkdir(exist_ok=True)
        artifacts.write_text(file, TARGETS[one.who](plan, self.inventory, one.settings["method"]))
        settings = dict(one.settings.get("settings", {}))
        if job.draw:
            settings["seed"] = job.draw
        request = {"peer": one.who, "model": locate.resolve(self.model), "out": str(checkpoint), "plan": str(file),
                   "calibration": str(self.reordered(job.draw)), "threads": self.arguments.threads,
                   **one.settings, "settings": settings}  # fmt: skip
        found = run_peer(request, self.work / f"{job.name}@{job.size}#{job.draw}.log")
        if found is None:
            return None
        costs = self.costs(found["seconds_total"], found, f"allocate_{one.plan}" if one.plan in PEERS else None)
        return {**costs, "versions": found["versions"], **self.sizes(plan)}

    def by_llamacpp(self, job: Job, checkpoint: Path) -> dict[str, Any] | None:
        """llama.cpp's own mixture, from a file in 16 bits, with an importance matrix of the same tokens."""
        source, matrix = self.in_gguf()
        request = {"peer": "llamacpp", "method": "mixture", "model": str(source), "out": str(checkpoint),
                   "imatrix": str(matrix), "mixture": job.size, "threads": self.arguments.threads}  # fmt: skip
        found = run_peer(request, self.work / f"{job.name}@{job.size}.log")
        if found is None:
            return None
        types, names = found["settings"]["types"], gguf_names(load_config(self.model))
        linears = self.inventory.linears
        taken = sum(m.weights * GgmlFormat(types[names[f"{m.address}.weight"]]).effective_bits for m in linears)
        return {
            **self.costs(found["seconds_total"], found, None),
            "versions": found["versions"],
            "effective_bits": taken / sum(m.weights for m in linears),
            "file_bytes": (checkpoint / "model.gguf").stat().st_size,
            "format": "gguf",
            "types": dict(Counter(types.values())),
        }

    def in_gguf(self) -> tuple[Path, Path]:
        """The original as a GGUF file in its own type, in a folder, and the importance matrix of the calibration."""
        folder, matrix = self.work / "original_gguf", self.work / "imatrix.gguf"
        model = Model(self.model)
        if not folder.is_dir():
            keep = build_plan(PlanSpec.model_validate({"default": "keep"}), self.inventory, self.model, "rtn")
            stream.compress(model, keep, folder, format=checkpoint_format("gguf"))
        if not matrix.is_file():
            opened = model.open_blocks(("embedding", "norm"))
            squares, count = mean_squares(opened, model.decoder, self.calibration, matrix)
            write_imatrix(matrix, squares, model.config, tokens=count, chunk=512, datasets=["calibration"])
        return folder, matrix

    def costs(self, seconds: float, found: Mapping[str, Any], before: str | None) -> dict[str, Any]:
        """What a pipeline took, with the job ``before`` it that its plan is made from."""
        planning = artifacts.read_json(self.work / f"{before}.json")["cpu_seconds"] if before else 0.0
        return {
            "seconds": seconds,
            "cpu_seconds": found["cpu_seconds"] + planning,
            "cpu_seconds_plan": planning,
            "peak_bytes": found["peak_rss_bytes"],
        }

    # Evaluation

    @cached_property
    def seen(self) -> list[Passage]:
        """Calibration samples, the same whatever the draw."""
        return [Passage(tokens, ()) for tokens in self.calibration.tokens[:_SEEN]]

    @property
    def everything(self) -> list[Passage]:
        return [*super().everything, *self.seen]

    def evaluate(self, checkpoint: Path) -> Row:
        """KL by passage, on the text that figures are read from and on calibration samples."""
        found = self.compared(checkpoint)
        held_out = self.summary(found)
        seen = by_passage(found[-len(self.seen) :])
        return held_out | {"kl_calibration": sum(p["kl_sum"] for p in seen) / sum(p["tokens"] for p in seen)}
