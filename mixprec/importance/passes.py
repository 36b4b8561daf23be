"""The passes over the traces: each leaves one file of statistics, whichever process makes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec import artifacts, processes
from mixprec.errors import UserError
from mixprec.importance import statistics, streaming
from mixprec.importance.engine import Job, Layout, TraceResult, run_trace
from mixprec.importance.options import AttributionOptions
from mixprec.importance.parallel import share
from mixprec.importance.windows import Work, plan_work
from mixprec.models import LoadedModel
from mixprec.progress import bar
from mixprec.traces.spans import AnnotatedTrace, token_spans
from mixprec.traces.store import BEHAVIOURS


class Task(NamedTuple):
    """One trace's pass: token ids (T,), what each preset needs, and a file for each layout, with their stamp."""

    ids: Tensor
    works: dict[str, Work]
    paths: tuple[Path, ...]
    stamp: str


def plan(
    loaded: LoadedModel,
    traces: Sequence[AnnotatedTrace],
    paths: Sequence[tuple[Path, ...]],
    options: Mapping[str, AttributionOptions],
    limit: int,
    identity: str,
) -> tuple[list[Task], dict[str, Counter[str]]]:
    """The passes over ``traces``, cut at ``limit`` tokens; skipped spans per preset by reason, ``cut`` traces.

    ``paths``: for each trace its files, one for each layout.
    Raises UserError for a trace of fewer than two tokens.
    """
    skipped: dict[str, Counter[str]] = {name: Counter() for name in (*options, "cut")}
    settings = {name: option.model_dump() for name, option in options.items()}
    tasks = []
    for trace, files in zip(traces, paths, strict=True):
        ids, offsets, cut = _encode(loaded, trace, limit)
        spans, missed = token_spans(trace.spans, offsets, limit)
        works = {name: plan_work(spans, BEHAVIOURS, len(ids), option) for name, option in options.items()}
        for name, work in works.items():
            skipped[name].update(trace.skipped)
            skipped[name].update(missed)
            skipped[name].update(work.skipped)
        skipped["cut"]["cut"] += cut
        stamp = artifacts.fingerprint(identity, settings, ids.tolist(), [list(span) for span in spans])
        tasks.append(Task(ids, works, files, stamp))
    return tasks, skipped


def _encode(loaded: LoadedModel, trace: AnnotatedTrace, limit: int) -> tuple[Tensor, list[tuple[int, int]], int]:
    """Token ids (T,) cut at ``limit``, the character offsets of all tokens, and 1 if the trace was cut."""
    encoded = loaded.tokenizer(trace.trace.text, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    if len(ids) < 2:
        raise UserError(f"trace {trace.trace.id}: {len(ids)} tokens; a trace needs at least two")
    return torch.tensor(ids[:limit]), encoded["offset_mapping"], int(len(ids) > limit)


def run(
    loaded: LoadedModel, layouts: Sequence[Layout], options: Mapping[str, AttributionOptions], tasks: Sequence[Task]
) -> None:
    """Make every statistics file that is not there yet; under ``accelerate launch`` together with other processes.

    Returns when all files are there, in every process.
    """
    # All processes have to split the same list, so the main one's view of the folder counts.
    done = processes.agree([all(statistics.is_done(path, task.stamp) for path in task.paths) for task in tasks])
    left = [task for task, is_done in zip(tasks, done, strict=True) if not is_done]
    mine = [left[number] for number in share([len(task.ids) for task in left], processes.rank(), processes.count())]
    jobs = [_job(task) for task in mine]
    with bar("attribute", sum(len(task.ids) for task in mine), "tokens") as advance:
        for number, result in _results(loaded, Layout.joined(layouts), jobs):
            _save(mine[number], layouts, options, result)
            advance(len(mine[number].ids))
    processes.wait()


def _save(
    task: Task, layouts: Sequence[Layout], options: Mapping[str, AttributionOptions], result: TraceResult
) -> None:
    sizes = [layout.size for layout in layouts]
    parts = zip(task.paths, result.row_sums.split(sizes, 1), result.gradients.split(sizes, 1), strict=True)
    for path, row_sums, gradients in parts:
        found = statistics.collect(task.works, options, TraceResult(row_sums, gradients), len(task.ids))
        statistics.save(path, found, task.stamp)


def _job(task: Task) -> Job:
    rows = torch.cat([torch.ones(1, len(task.ids)), *(work.rows for work in task.works.values())])
    return Job(task.ids, rows, [window for work in task.works.values() for window in work.windows])


def _results(loaded: LoadedModel, layout: Layout, jobs: Sequence[Job]) -> Iterator[tuple[int, TraceResult]]:
    """Each job's number and result, as soon as it is there."""
    if isinstance(loaded, streaming.StreamedModel):
        for group in streaming.groups(loaded, layout, jobs):
            yield from zip(group, streaming.run_traces(loaded, layout, [jobs[n] for n in group]), strict=True)
    else:
        for number, job in enumerate(jobs):
            yield number, run_trace(loaded.model, layout, *job)
