"""Label Studio's exports of text labels: JSON and JSON-MIN (https://labelstud.io/guide/export).

A region is ``{"start", "end", "text", "labels"}``. Its offsets are checked against its text: some versions count UTF-16
units, in which an emoji is two, and Python counts characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core.errors import UserError
from mixprec.traces.annotate import normalise_label
from mixprec.traces.foreign.base import Found
from mixprec.traces.spans import AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

_PROGRAM = "Label Studio"
#: Keys of a task's data that the labelled text may stand under, the first that is there.
_TEXTS = ("output", "text", "reasoning", "trace")
#: Kinds of regions that mark nothing in the text, or nothing with a label.
_NO_SPANS = frozenset({"choices", "textarea", "rating", "number", "relation", "taxonomy", "datetime", "pairwise"})


class _Region(NamedTuple):
    start: int
    end: int
    text: str | None
    labels: tuple[str, ...]


class _Task(NamedTuple):
    """A task and its annotations, each with who made it."""

    where: str
    id: str
    data: Mapping[str, Any]
    annotations: list[tuple[str, list[_Region]]]


def read(
    tasks: Sequence[Mapping[str, Any]], path: Path, traces: Sequence[Trace], by: str | None, text_key: str | None
) -> Found | None:
    """The tasks' traces with spans; None where these are no tasks of Label Studio.

    Of ``traces`` that are given, the one belongs to a task whose id its data names, or whose text was labelled; without
    them the data has to hold the trace: its output or whole text, and its prompt. Tasks that were skipped or never
    annotated are left out and counted, since no label there doesn't mean no behaviour.

    Raises UserError naming file and task for regions outside the text or with another text, HTML without offsets, a
    task with several annotations and no ``by``, and a text of no trace.
    """
    left_out: Counter[str] = Counter()
    kept: dict[str, AnnotatedTrace] = {}
    read_tasks = _tasks(tasks, path, left_out)
    if read_tasks is None:
        return None
    owners = _Owners(traces)
    for task in read_tasks:
        regions = _chosen(task, by, left_out)
        if regions is None:
            continue
        key, text = _labelled(task, text_key)
        trace, offset = owners.of(task, key, text) if traces else _own(task, key, text)
        annotated = _annotated(trace, regions, text, offset, task.where)
        if trace.id in kept:
            raise UserError(
                f"{task.where}: trace {trace.id!r} stands twice; export each task once, or choose with --by"
            )
        kept[trace.id] = annotated
    return Found(_PROGRAM, annotated=list(kept.values()), left_out=left_out)


def _tasks(tasks: Sequence[Mapping[str, Any]], path: Path, left_out: Counter[str]) -> list[_Task] | None:
    if all(isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list) for task in tasks):
        return [_full(task, f"{path}: task {task.get('id', number)}", left_out) for number, task in enumerate(tasks, 1)]
    if any("annotation_id" in task or "annotator" in task for task in tasks):
        return _minimal(tasks, path)
    return None


def _full(task: Mapping[str, Any], where: str, left_out: Counter[str]) -> _Task:
    found = []
    for annotation in task["annotations"]:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise UserError(f"{where}: an annotation without result; export the project again, as JSON")
        if annotation.get("was_cancelled"):
            left_out["skipped by its annotator"] += 1
            continue
        found.append((_who(annotation.get("completed_by")), list(_regions(annotation["result"], where))))
    return _Task(where, str(task.get("id", "")), task["data"], found)


def _who(value: Any) -> str:
    """Number or address of an annotator, which exports give as a number or as an object."""
    if isinstance(value, dict):
        value = value.get("id", value.get("email"))
    return str(value)


def _minimal(tasks: Sequence[Mapping[str, Any]], path: Path) -> list[_Task]:
    """JSON-MIN has a row for each annotation; labels stand under the name of their control."""
    rows: dict[str, _Task] = {}
    for number, row in enumerate(tasks, 1):
        where = f"{path}: task {row.get('id', number)}"
        marked = [value for value in row.values() if isinstance(value, list) and value and _is_region(value[0])]
        data = {key: value for key, value in row.items() if isinstance(value, str)}
        task = rows.setdefault(str(row.get("id", number)), _Task(where, str(row.get("id", "")), data, []))
        regions = [_region(each, where) for value in marked for each in value]
        task.annotations.append((_who(row.get("annotator")), regions))
    return list(rows.values())


def _is_region(value: Any) -> bool:
    return isinstance(value, dict) and {"start", "end"} <= value.keys()


def _regions(result: Sequence[Any], where: str) -> Iterator[_Region]:
    for each in result:
        kind = each.get("type") if isinstance(each, dict) else None
        if isinstance(kind, str) and kind in _NO_SPANS:
            continue
        if not isinstance(each, dict) or not isinstance(each.get("value"), dict):
            raise UserError(f"{where}: a region of type {kind!r} without a value; export the project again, as JSON")
        yield _region(each["value"], where)


def _region(value: Any, where: str) -> _Region:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a region that is no object: {value!r}")
    offsets = value.get("globalOffsets", value)  # of HyperText, whose own are relative to an element
    start, end = (offsets.get(key) if isinstance(offsets, dict) else None for key in ("start", "end"))
    if type(start) is not int or type(end) is not int:
        raise UserError(f"{where}: a region from {start!r} to {end!r}, no characters; label plain text, not HTML")
    labels: list[Any] = next(
        (value[key] for key in ("labels", "hypertextlabels") if isinstance(value.get(key), list)), []
    )
    text = value.get("text")
    return _Region(start, end, text if isinstance(text, str) else None, tuple(map(str, labels)))


def _chosen(task: _Task, by: str | None, left_out: Counter[str]) -> list[_Region] | None:
    """The annotation that counts; None where there is none."""
    found = [(who, regions) for who, regions in task.annotations if by is None or who == by]
    if not found:
        left_out["not annotated" if by is None else f"not annotated by {by}"] += 1
        return None
    if len(found) > 1:
        names = ", ".join(dict.fromkeys(who for who, _ in found))
        raise UserError(
            f"{task.where}: {len(found)} annotations, by {names}; choose one annotator with --by, or delete the others "
            "in Label Studio"
        )
    return found[0][1]


def _labelled(task: _Task, text_key: str | None) -> tuple[str, str]:
    """The key of the text that was labelled, and the text."""
    keys = (text_key,) if text_key else _TEXTS
    for key in keys:
        if isinstance(task.data.get(key), str):
            return key, str(task.data[key])
    there = ", ".join(map(str, task.data)) or "nothing"
    raise UserError(f"{task.where}: data has no text under {', '.join(keys)}, but {there}; say which: --text-key NAME")


class _Owners:
    """Traces by id and by text."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._by_id = {trace.id: trace for trace in traces}
        self._by_text: dict[str, list[tuple[Trace, int]]] = {}
        for trace in traces:
            self._by_text.setdefault(trace.text, []).append((trace, 0))
            self._by_text.setdefault(trace.output, []).append((trace, len(trace.prompt)))

    def of(self, task: _Task, key: str, text: str) -> tuple[Trace, int]:
        """The task's trace, and where in its text the labelled text begins."""
        name = task.data.get("id")
        trace = self._by_id.get(str(name)) if name is not None else None
        if trace is not None and text == trace.output:
            return trace, len(trace.prompt)
        if trace is not None and text == trace.text:
            return trace, 0
        fitting = self._by_text.get(text, [])
        if len(fitting) != 1:
            told = "is of none" if not fitting else f"is of {len(fitting)}"
            raise UserError(f"{task.where}: data.{key} {told} of the traces given; add the trace's id to data as 'id'")
        return fitting[0]


def _own(task: _Task, key: str, text: str) -> tuple[Trace, int]:
    prompt = task.data.get("prompt", "")
    if not isinstance(prompt, str):
        raise UserError(f"{task.where}: data.prompt is no text")
    name, dataset = str(task.data.get("id") or task.id), str(task.data.get("dataset") or "")
    if not text.strip() or not name:
        raise UserError(f"{task.where}: data.{key} is empty, or the task has no id; leave such tasks out")
    identifier = f"{dataset}/{name}" if dataset else name
    if prompt and text.startswith(prompt) and text[len(prompt) :].strip():
        return Trace(identifier, dataset, prompt, text[len(prompt) :]), 0
    return Trace(identifier, dataset, prompt, text), len(prompt)


def _annotated(trace: Trace, regions: Sequence[_Region], text: str, offset: int, where: str) -> AnnotatedTrace:
    spans, skipped = [], Counter[str]()
    for region in regions:
        start, end = _place(region, text, where)
        behaviours = [normalise_label(label) for label in region.labels]
        skipped["unlabelled"] += not behaviours
        skipped["unknown_label"] += behaviours.count(None)
        spans += [CharSpan(behaviour, start + offset, end + offset) for behaviour in behaviours if behaviour]
    spans.sort(key=lambda span: (span.start, span.end))
    return AnnotatedTrace(trace, spans, dict(sorted((+skipped).items())), {"kind": "import", "program": _PROGRAM})


def _place(region: _Region, text: str, where: str) -> tuple[int, int]:
    """Where a region stands in the text, in characters."""
    for start, end in ((region.start, region.end), _from_utf16(text, region.start, region.end)):
        if 0 <= start < end <= len(text) and (region.text is None or _same(text[start:end], region.text)):
            return start, end
    said = f" ({region.text[:40]!r})" if region.text else ""
    raise UserError(
        f"{where}: the region from {region.start} to {region.end} isn't what stands there{said}; "
        "is this the text that was labelled? --text-key NAME says which key of the data it is"
    )


def _same(found: str, said: str) -> bool:
    """Exports write a line's end as \\n with a backslash."""
    return said in (found, found.replace("\n", "\\n"))


def _from_utf16(text: str, start: int, end: int) -> tuple[int, int]:
    """Places in UTF-16 units as places in characters; (-1, -1) where they lie in the middle of one, or outside."""
    raw = text.encode("utf-16-le", "surrogatepass")
    if not 0 <= start <= end <= len(raw) // 2:
        return -1, -1
    try:
        return len(raw[: 2 * start].decode("utf-16-le")), len(raw[: 2 * end].decode("utf-16-le"))
    except UnicodeDecodeError:
        return -1, -1
