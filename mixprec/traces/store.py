"""Traces on disk: one JSON object per line with id, prompt, output and, where it was annotated, annotated."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.errors import UserError

#: Trace sets that ship with mixprec; ``data: bundled:attribution`` in a recipe.
BUNDLED_SETS = ("attribution", "held_out")
#: Of them the one that compressed models are evaluated on; a plain text lies beside its traces.
HELD_OUT = "bundled:held_out"

#: The four behaviours that are scored (DESIGN words, with underscores), in the paper's order.
BEHAVIOURS = ("backtracking", "uncertainty_estimation", "example_testing", "adding_knowledge")
#: The two labels that are annotated but not scored.
UNSCORED = ("initializing", "deduction")


@dataclass(frozen=True)
class Trace:
    """Prompt and reasoning of one instance. ``annotated`` is the annotator's text, None where there is none."""

    id: str
    dataset: str
    prompt: str
    output: str
    annotated: str | None = None

    @property
    def text(self) -> str:
        """Prompt and output in a row, as the model sees them."""
        return self.prompt + self.output


def locate(source: str) -> Path:
    """Path of a trace file: ``bundled:NAME`` or a path.

    Raises UserError where there is none.
    """
    if source.startswith("bundled:"):
        name = source.removeprefix("bundled:")
        if name not in BUNDLED_SETS:
            raise UserError(f"traces: {source!r}: bundled sets are {', '.join(BUNDLED_SETS)}")
        return Path(str(resources.files("mixprec.traces").joinpath("data", f"{name}.jsonl")))
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"traces: {source}: no such file")
    return path


def held_out_text() -> Path:
    """The text that belongs to ``HELD_OUT``."""
    return locate(HELD_OUT).with_suffix(".txt")


def load(source: str) -> list[Trace]:
    """Read traces, each with a unique id.

    Ids that repeat across datasets are told apart by the dataset, which is put in front.
    Raises UserError naming file, row and key for missing keys, values that are no text, empty text, duplicates.
    """
    path = locate(source)
    traces: dict[str, Trace] = {}
    for number, row in enumerate(artifacts.read_jsonl(path), 1):
        trace = _trace(row, f"{path}: trace {number}")
        if trace.id in traces:
            raise UserError(f"{path}: trace {number}: id {trace.id!r} stands twice; ids must be unique")
        traces[trace.id] = trace
    if not traces:
        raise UserError(f"{path}: no traces in this file")
    return list(traces.values())


def _trace(row: dict[str, Any], where: str) -> Trace:
    for key in ("id", "prompt", "output"):
        if not isinstance(row.get(key), str):
            raise UserError(f"{where}: key {key!r} is missing or no text")
    if not row["output"].strip():
        raise UserError(f"{where} ({row['id']}): output is empty; leave such traces out")
    annotated = row.get("annotated")
    if annotated is not None and not isinstance(annotated, str):
        raise UserError(f"{where}: key 'annotated' is no text")
    dataset = str(row.get("dataset") or "")
    return Trace(full_id(row["id"], dataset), dataset, row["prompt"], row["output"], annotated)


def full_id(identifier: str, dataset: str) -> str:
    """A trace's id: that in its file, behind the dataset where it has one."""
    return f"{dataset}/{identifier}" if dataset else identifier


def local_id(identifier: str, dataset: str) -> str:
    """A trace's id as its file has it: without the dataset that ``full_id`` puts in front."""
    return identifier.removeprefix(f"{dataset}/") if dataset else identifier
