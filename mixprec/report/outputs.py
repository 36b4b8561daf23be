"""What variants generated on benchmarks, beside the original's: pairs to read, and outputs that collapsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts
from mixprec.evaluate import diagnosis, generations
from mixprec.evaluate.generations import Key, Record
from mixprec.report.shapes import read_benchmarks

#: Pairs of outputs of a benchmark, and collapsed outputs of a variant, that are shown; characters of each.
PAIRS, COLLAPSED, CHARACTERS = 3, 3, 2400


class Output(NamedTuple):
    """A text, cut in its middle where it is long (``of``: characters in all), and how it ended.

    ``outcome``: correct, wrong or none; ``loops``: where in ``text`` a loop begins that it ends in, None without.
    """

    text: str
    of: int
    tokens: int | None
    outcome: str
    cut: bool
    loops: int | None

    @property
    def collapsed(self) -> bool:
        """Whether it repeats itself until it was cut."""
        return self.cut and self.loops is not None


class Outputs(NamedTuple):
    """A variant's generations: (benchmark, question, seed) -> record; with the outcome of each."""

    records: Mapping[tuple[str, Key], Record]
    outcomes: Mapping[tuple[str, Key], str]
    titles: Mapping[str, str]


class Pair(NamedTuple):
    """A question's two outputs."""

    title: str
    question: str
    seed: int
    original: Output
    variant: Output


class Shown(NamedTuple):
    """What is shown of a variant: ``pairs`` of ``of``, and ``collapsed`` outputs of ``collapsed_of``."""

    name: str
    pairs: list[Pair]
    of: int
    collapsed: list[tuple[str, str, int, Output]]
    collapsed_of: int


def read_outputs(folder: Path) -> Outputs:
    """The generations that a variant's benchmarks.json was made from.

    Raises UserError for a broken file or line.
    """
    result = read_benchmarks(folder / "benchmarks.json")
    records: dict[tuple[str, Key], Record] = {}
    outcomes: dict[tuple[str, Key], str] = {}
    for name, entry in result["benchmarks"].items():
        wanted = {
            Key(question, seed): outcome
            for question, each in (entry.get("per_question") or {}).items()
            for seed, outcome in zip(result["protocol"]["seeds"], each.get("outcomes") or (), strict=False)
        }
        for key, record in _generated(folder, name, result):
            if key in wanted:
                records[name, key], outcomes[name, key] = record, wanted[key]
    return Outputs(records, outcomes, {name: entry["title"] for name, entry in result["benchmarks"].items()})


def _generated(folder: Path, benchmark: str, result: Mapping[str, Any]) -> Iterator[tuple[Key, Record]]:
    """Those of this model under this protocol: what an earlier plan generated lies in other folders."""
    for path in sorted((folder / "generations").glob(f"*/{benchmark}.jsonl")):
        for number, row in enumerate(artifacts.read_jsonl(path), 1):
            protocol, sampling = result["protocol"], row.get("sampling") or {}
            same = row.get("model") == result["model"] and row.get("prompts") == protocol["prompts"]
            if not same or any(protocol.get(key) != value for key, value in sampling.items()):
                break  # lines of one file were made alike
            yield generations.parse(row, f"{path}:{number}")


def shown(outputs: Mapping[str, Outputs], baseline: str) -> list[Shown]:
    """Of every other variant, pairs with the ``baseline``'s outputs, those where the outcome differs first, and outputs
    that collapsed. Empty where the baseline generated nothing."""
    ours = outputs.get(baseline)
    if ours is None or not ours.records:
        return []
    return [_shown(name, found, ours) for name, found in outputs.items() if name != baseline and found.records]


def _shown(name: str, found: Outputs, ours: Outputs) -> Shown:
    common = [key for key in found.records if key in ours.records]
    by_benchmark: dict[str, list[tuple[str, Key]]] = {}
    for key in sorted(common, key=lambda key: found.outcomes[key] == ours.outcomes[key]):
        by_benchmark.setdefault(key[0], []).append(key)
    pairs = [
        Pair(found.titles[key[0]], key[1].id, key[1].seed, _output(ours, key), _output(found, key))
        for keys in by_benchmark.values()
        for key in keys[:PAIRS]
    ]
    collapsed = [
        (found.titles[key[0]], key[1].id, key[1].seed, output)
        for key in found.records
        if found.records[key].finish == "length" and (output := _output(found, key)).collapsed
    ]
    return Shown(name, pairs, len(common), collapsed[:COLLAPSED], len(collapsed))


def _output(found: Outputs, key: tuple[str, Key]) -> Output:
    record = found.records[key]
    loop = diagnosis.find_loop(record.output)
    text, at = _cut(record.output, None if loop is None else loop.start)
    return Output(text, len(record.output), record.tokens, found.outcomes[key], record.finish == "length", at)


def _cut(text: str, loop: int | None) -> tuple[str, int | None]:
    """A text's beginning, and its end or what is around the beginning of its loop, with how much was left out; and
    where the loop begins in that."""
    if len(text) <= CHARACTERS:
        return text, loop
    half = CHARACTERS // 2
    wanted = len(text) - half if loop is None else max(half, loop - half // 3)
    start = min(wanted, len(text) - half)
    head = text[:half] + (f"\n[… {start - half:,} characters left out …]\n" if start > half else "")
    rest = len(text) - start - half
    shown = head + text[start : start + half] + (f"\n[… {rest:,} characters more]" if rest else "")
    return shown, loop if loop is None or loop < half else loop - start + len(head)
