"""Distillation of SmolLM2-135M on procedural traces, and what it does to importance.

python benchmarks/distillation.py [--traces N] [--work FOLDER] --json OUT

The teacher is the procedure of ``mixprec make-traces``; the student learns its text, all weights in float32 (TRL's
SFTTrainer through ``mixprec distill``). Importance of the base and of the distilled model is computed on other traces
of the same procedure, which neither training nor validation saw; problems are of the same two kinds, equations and
remainders, whose traces are the shortest. A shift is relative importance of the distilled model minus that of the
base (arXiv 2504.02010, section 4.3 and appendix K). Intervals (95%, ``_ci``) are of 1,000 bootstrap resamples of the
traces, the same for both models: they say nothing of other trainings. Everything lies in the work folder, so that a
run that was stopped goes on.

Keys of OUT
    train_tokens_per_second   tokens that went through training steps, per second of the clock, one thread
    train_tokens              tokens of the training traces
    train_written             of them those that the teacher wrote, which alone count
    train_traces              training traces
    validation_traces         traces that were held out
    steps                     steps of training
    kept_step                 the step whose weights are kept, by the loss on validation
    validation_before         nats per token that the teacher wrote, of the base
    validation_after          the same at the kept step
    validation_written        the same of the checkpoint's weights, which are rounded to its 16 bits
    training_loss             table of the loss by step: training, mean of the steps since the last row, and validation
    importance_traces         traces that importance is of
    last_up                   (a part) the up projection of the last layer, for each behaviour: its rank among all 210
                              modules and its relative importance in base and distilled, and the gain
    spearman                  (a part) of base's and distilled's importance, over all modules
    moved                     (a part) relative importance that is elsewhere after distillation
    gained                    table of the modules that gained most relative importance, before and after
    lost                      table of the modules that lost most
    most_important            table of the distilled model's most important modules
    most_important_base       table of the base's
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import machine
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STUDENT = "smollm2-135m-instruct"
KINDS = ("equations", "remainders")
RESAMPLES = 1000
LAST = "last_up"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=56, help="traces to train on, eight of which are held out")
    parser.add_argument("--measured", type=int, default=22, help="other traces, which importance is of")
    parser.add_argument("--work", default="runs/benchmark_distillation", help="checkpoint and statistics, kept")
    parser.add_argument("--json", required=True, help="where the figures go")
    arguments = parser.parse_args()
    from mixprec.core import progress

    progress.speak()
    work = Path(arguments.work) / f"{arguments.traces}_{arguments.measured}"
    figures = distilled(work, arguments.traces)
    machine.write(arguments.json, __file__, figures | shifted(work, arguments.measured))


def distilled(work: Path, count: int) -> dict[str, Any]:
    """Train the student, and how that went."""
    import mixprec as mp

    traces = work / "training.jsonl"
    mp.make_traces(traces, count=count, seed=0, kinds=KINDS)
    options = mp.DistillOptions(validation=8, epochs=1, batch=4, rate=2e-4, checks=2, dtype="float32")
    made = mp.distill(STUDENT, traces, work / "distilled", options=options)
    speed = work / "speed.json"  # a clock's figure is no part of a checkpoint
    if made.speed is not None:
        speed.write_text(json.dumps(made.speed), encoding="utf-8")
    counts, course = made.told["counts"], made.told["course"]
    return {
        "train_tokens_per_second": json.loads(speed.read_text(encoding="utf-8")),
        "train_tokens": counts["training_tokens"],
        "train_written": counts["training_written"],
        "train_traces": counts["training_traces"],
        "validation_traces": counts["validation_traces"],
        "steps": course["steps"],
        "kept_step": course["kept_step"],
        "validation_before": course["before"],
        "validation_after": course["after"],
        "validation_written": course["written"],
        "training_loss": losses(course),
    }


def losses(course: dict[str, Any]) -> str:
    """The curves as a table, by the steps that were measured."""
    from mixprec.report.tables import Cell, Column, Table, to_markdown

    rows, since = [], 0
    for step, loss in course["validation"]:
        between = [value for at, value in course["training"] if since < at <= step]
        mean = f"{np.mean(between):.4f}" if between else "–"
        rows.append([Cell(str(step)), Cell(mean), Cell(f"{loss:.4f}")])
        since = step
    return to_markdown(Table([Column("step"), Column("training"), Column("validation")], rows))


def shifted(work: Path, count: int) -> dict[str, Any]:
    """Importance of base and distilled on the same traces, and the shift between them."""
    from mixprec.importance import artifact
    from mixprec.importance import shift as shifts
    from mixprec.report.rankings import movers_table
    from mixprec.report.shift import write_shift
    from mixprec.report.tables import to_markdown

    folders = {name: attributed(work, name, count) for name in ("base", "distilled")}
    found = {name: artifact.load(folder / "importance.json") for name, folder in folders.items()}
    made = shifts.shift(found["distilled"], found["base"], ("distilled", "base"))
    for kind in ("decreases", "net"):  # what the distilled model has more of; section 4.3 draws the first
        write_shift(made, kind, work / f"shift_{kind}")
    back = shifts.shift(found["base"], found["distilled"], ("base", "distilled"))
    behaviours = made["behaviours"]
    return {
        "importance_traces": count,
        "last_up": {name: last(found, name) for name in behaviours} | gains(folders, list(behaviours), count),
        "spearman": {name: entry["spearman"] for name, entry in behaviours.items()},
        "moved": {name: entry["moved"] for name, entry in behaviours.items()},
        "gained": to_markdown(movers_table(back, "increases")),
        "lost": to_markdown(movers_table(back, "decreases")),
        "most_important": top(found["distilled"]),
        "most_important_base": top(found["base"]),
    }


def attributed(work: Path, name: str, count: int) -> Path:
    """The folder of the importance of the base or of the distilled model."""
    import mixprec as mp

    traces, folder = work / "measured.jsonl", work / f"importance_{name}"
    mp.make_traces(traces, count=count, seed=1, kinds=KINDS)
    model = STUDENT if name == "base" else work / "distilled"
    mp.attribute(model, mp.annotate(traces), out=folder, resamples=RESAMPLES).heatmap().save(folder / "importance")
    return folder


def last(found: dict[str, Any], behaviour: str) -> dict[str, Any]:
    """Rank and relative importance of the last up projection in both."""
    from mixprec.importance import artifact

    told: dict[str, Any] = {}
    for name in ("base", "distilled"):
        scores = np.array(found[name]["behaviours"][behaviour]["scores"])
        told[f"rank_{name}"] = int(artifact.ranks(scores)[at(found[name])])
        told[f"relative_{name}"] = float(artifact.relative(scores)[at(found[name])])
    return told


def at(importance: dict[str, Any]) -> int:
    """Where the last up projection is among the modules."""
    ups = [number for number, row in enumerate(importance["modules"]) if row["kind"] == "up"]
    return max(ups, key=lambda number: importance["modules"][number]["layer"])


def gains(folders: dict[str, Path], behaviours: list[str], traces: int) -> dict[str, Any]:
    """The gain in relative importance of the last up projection, traces resampled together."""
    import torch

    from mixprec.importance import artifact, bootstrap, statistics
    from mixprec.importance.engine import Layout
    from mixprec.importance.options import AttributionOptions
    from mixprec.models.model import Model
    from mixprec.traces.store import BEHAVIOURS

    slices = Layout.of_linears(Model(STUDENT).load().linears).slices
    weights = torch.cat([torch.ones(1, traces, dtype=torch.long), bootstrap.draw(traces, RESAMPLES)])
    where, relative = at(artifact.load(folders["base"] / "importance.json")), {}
    for name, folder in folders.items():
        files = statistics.paths(folder / "traces", traces)
        scores = bootstrap.importance(files, "paper", slices, AttributionOptions.of("paper"), weights).numpy()
        relative[name] = scores[:, :, where] / scores.sum(2)
    gain = relative["distilled"] - relative["base"]  # (1 + resamples, behaviours)
    told: dict[str, Any] = {}
    for behaviour in behaviours:
        own = gain[:, BEHAVIOURS.index(behaviour)]
        told[f"gain_{behaviour}"] = float(own[0])
        told[f"gain_{behaviour}_ci"] = [float(bound) for bound in np.nanquantile(own[1:], [0.025, 0.975])]
    return told


def top(importance: dict[str, Any]) -> str:
    """The five most important modules of each behaviour, with their share."""
    from mixprec.importance import artifact
    from mixprec.report.formatting import percent, words
    from mixprec.report.tables import Cell, Column, Table, to_markdown

    columns = []
    for entry in importance["behaviours"].values():
        shares = artifact.relative(entry["scores"])
        order = np.argsort(-shares)[:5]
        columns.append([Cell(importance["modules"][i]["label"], percent(shares[i], 2)) for i in order])
    rows = [[Cell(str(number + 1)), *row] for number, row in enumerate(zip(*columns, strict=True))]
    return to_markdown(Table([Column(""), *(Column(words(n), numeric=False) for n in importance["behaviours"])], rows))


if __name__ == "__main__":
    sys.exit(main())
