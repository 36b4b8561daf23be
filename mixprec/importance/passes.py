"""The passes over the traces: each leaves one file of statistics, whichever process makes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.core import artifacts, processes
from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.importance import RULES, statistics, streaming
from mixprec.importance.engine import Job, Layout, run_trace
from mixprec.importance.options import AttributionOptions
from mixprec.importance.outputs import accumulation_dtype
from mixprec.importance.windows import Work, plan_work
from mixprec.models.load import LoadedModel
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
        stamp = artifacts.fingerprint(RULES, identity, settings, ids.tolist(), [list(span) for span in spans])
        tasks.append(Task(ids, works, files, stamp))
    return tasks, skipped


def _encode(loaded: LoadedModel, trace: AnnotatedTrace, limit: int) -> tuple[Tensor, list[tuple[int, int]], int]:
    """Token ids (T,) cut at ``limit``, the character offsets of all tokens, and 1 if the trace was cut."""
    ids, offsets = loaded.encoder(trace.trace.text)
    if len(ids) < 2:
        raise UserError(f"trace {trace.trace.id}: {len(ids)} tokens; a trace needs at least two")
    return torch.tensor(ids[:limit]), offsets, int(len(ids) > limit)


def run(
    loaded: LoadedModel, layouts: Sequence[Layout], options: Mapping[str, AttributionOptions], tasks: Sequence[Task]
) -> None:
    """Make every statistics file that is not there yet; under ``accelerate launch`` together with other processes.

    Returns when all files are there, in every process.
    """
    # All processes have to split the same list, so the main one's view of the folder counts.
    done = processes.agree([all(artifacts.is_made(path, task.stamp) for path in task.paths) for task in tasks])
    left = [task for task, is_done in zip(tasks, done, strict=True) if not is_done]
    mine = [
        left[number]
        for number in processes.share([work_of(task) for task in left], processes.rank(), processes.count())
    ]
    with bar("attribute", sum(len(task.ids) for task in mine), "tokens") as advance:
        for number in _attribute(loaded, layouts, options, mine):
            advance(len(mine[number].ids))
    processes.wait()
    processes.check_shared(path for task in tasks for path in task.paths)


def work_of(task: Task) -> int:
    """About how long a pass takes: forward for every token, forward and backward for every span position."""
    return len(task.ids) + 2 * sum(window.compute for work in task.works.values() for window in work.windows)


def _attribute(
    loaded: LoadedModel, layouts: Sequence[Layout], options: Mapping[str, AttributionOptions], tasks: Sequence[Task]
) -> Iterator[int]:
    """Make the tasks' files; yields each task's number when its files are there."""
    layout, jobs = Layout.joined(layouts), [_job(task) for task in tasks]
    if not isinstance(loaded, streaming.StreamedModel):
        for number, (task, job) in enumerate(zip(tasks, jobs, strict=True)):
            with _writing(loaded, layouts, options, task) as files:
                files.finish(run_trace(loaded.model, layout, job, files))
            yield number
        return
    for group in streaming.groups(loaded, layout, jobs):
        with ExitStack() as stack:
            files_of = [stack.enter_context(_writing(loaded, layouts, options, tasks[n])) for n in group]
            sums = streaming.run_traces(loaded, layout, [jobs[n] for n in group], files_of)
            for files, row_sums in zip(files_of, sums, strict=True):
                files.finish(row_sums)
        yield from group


def _job(task: Task) -> Job:
    rows = torch.cat([torch.ones(1, len(task.ids)), *(work.rows for work in task.works.values())])
    return Job(task.ids, rows, [window for work in task.works.values() for window in work.windows])


class _Files:
    """A trace's statistics files, one for each layout."""

    def __init__(self, files: Sequence[statistics.TraceFile], sizes: Sequence[int]) -> None:
        self._files = files
        self._sizes = list(sizes)

    def add(self, windows: Tensor, found: Mapping[str, Tensor]) -> None:
        """Spans' gradients, from the pass."""
        for file in self._files:
            file.add(windows, found)

    def finish(self, row_sums: Tensor) -> None:
        """Activation sums, at the end of the pass."""
        for file, sums in zip(self._files, row_sums.split(self._sizes, 1), strict=True):
            file.finish(sums)


@contextmanager
def _writing(
    loaded: LoadedModel, layouts: Sequence[Layout], options: Mapping[str, AttributionOptions], task: Task
) -> Iterator[_Files]:
    """A trace's files, which appear when the block is left."""
    dtype = accumulation_dtype(loaded.model)
    with ExitStack() as stack:
        files = [
            stack.enter_context(statistics.writing(path, layout.slices, task.works, options, dtype, task.stamp))
            for path, layout in zip(task.paths, layouts, strict=True)
        ]
        yield _Files(files, [layout.size for layout in layouts])
