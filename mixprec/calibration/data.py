"""From the recipe's words to samples: read every source, draw its windows, mix them. Same spec, same data, same tokens.

Nothing is changed silently: a source that has fewer windows than it should give is an error, whatever the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixprec.calibration import sources
from mixprec.calibration.diagnosis import diagnose, warn
from mixprec.calibration.sources import Locate, Reading
from mixprec.calibration.spec import CalibrationSpec
from mixprec.calibration.windows import Stream, Window, counting, cut, looping, shuffled
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.encoding import Encoder


@dataclass(frozen=True, eq=False)
class Calibration:
    """Samples that go through the model, each on its own.

    tokens: (N, T) int64. weights: (N, T) float32, how much each token counts in the statistics, or None for all the
    same. described: samples, tokens, seed, each source with what it is, gave and left out, and the figures of
    ``diagnosis.diagnose``; JSON. digest: the fingerprint of tokens and weights.
    """

    tokens: Tensor
    weights: Tensor | None
    described: dict[str, Any]
    digest: str


class _Drawn(NamedTuple):
    tokens: Tensor
    weights: Tensor | None
    facts: dict[str, Any]


def load(
    spec: CalibrationSpec, encoder: Encoder, locate: Locate, context: int, *, skip: Sequence[int] = ()
) -> Calibration:
    """The calibration set that ``spec`` asks for.

    ``locate`` turns a source of the recipe (``data:PATH``) into a path or ``bundled:NAME``; ``context`` is how many
    tokens the model was trained to see at once. ``skip``: of each source so many windows go first, and to another set.

    Raises UserError where a sample is longer than the context, a source can't be read or is there twice, gives fewer
    samples than its share, or all its tokens weigh nothing.
    """
    front = encoder.head
    _check_length(spec, context, len(front))
    drawn: list[_Drawn] = []
    seen: dict[str, str] = {}
    before = skip or [0] * len(spec.sources)
    for number, (source, count) in enumerate(zip(spec.sources, spec.counts, strict=True)):
        if count == 0:
            raise UserError(
                f"calibration.samples: {spec.samples}: none of them is left for {source} with its share of "
                f"{source.share:g}; raise samples or the share"
            )
        reading = sources.read(source, encoder, locate, spec.seed)
        if reading.identity in seen:
            raise UserError(
                f"calibration: {source} has the content of {seen[reading.identity]}; give it once, with both shares "
                "added, so that no sample is drawn twice"
            )
        seen[reading.identity] = str(source)
        drawn.append(_draw(reading, number, count, spec, front, before[number]))
    return _mixed(drawn, spec, front)


def available(spec: CalibrationSpec, encoder: Encoder, locate: Locate) -> int:
    """The most samples that ``spec`` may ask for of its sources, with their shares.

    Raises UserError where a source can't be read.
    """
    whole, most = sum(source.share for source in spec.sources), []
    for source in spec.sources:
        stream = sources.read(source, encoder, locate, spec.seed).stream
        usable = _windows(stream, spec, source.loops == "skip", encoder.head).usable
        most.append(int(len(usable) * whole / source.share))
    return min(most)


class _Windows(NamedTuple):
    """Of a source: all, those with some weight, which of these are loops, and those that may be drawn."""

    all: list[Window]
    weighty: list[Window]
    loops: list[bool]
    usable: list[Window]


def _windows(stream: Stream, spec: CalibrationSpec, skip: bool, front: Sequence[int]) -> _Windows:
    windows = cut(stream, spec.tokens, front)
    weighty = counting(stream, windows)
    loops = looping(stream, weighty)
    usable = [window for window, loop in zip(weighty, loops, strict=True) if not (skip and loop)]
    return _Windows(windows, weighty, loops, usable)


def _check_length(spec: CalibrationSpec, context: int, head: int) -> None:
    if spec.tokens > context:
        raise UserError(f"calibration.tokens: {spec.tokens} is more than the model's context of {context}; lower it")
    if spec.tokens <= head:
        raise UserError(
            f"calibration.tokens: {spec.tokens} leaves no room behind the {head} tokens that every text begins with"
        )


def _draw(
    reading: Reading, number: int, count: int, spec: CalibrationSpec, front: Sequence[int], passed: int
) -> _Drawn:
    """``count`` windows of the source with that number, drawn without replacement behind those of another set."""
    source, skip = str(spec.sources[number]), spec.sources[number].loops == "skip"
    windows, weighty, loops, usable = _windows(reading.stream, spec, skip, front)
    if windows and not weighty:
        raise UserError(
            f"calibration: {source}: every token has weight 0, no span of the behaviours lies in its samples; weigh "
            "other behaviours, or give others more than 0"
        )
    last = passed + count
    if len(usable) < last:
        raise UserError(_too_few(reading.stream, source, last, spec, (len(windows), len(weighty), len(usable))))
    order = shuffled(len(usable), spec.seed, f"windows of source {number}")
    chosen = [usable[number] for number in order[passed:last]]
    tokens, weights = _take(reading.stream, chosen, spec.tokens, front)
    facts = (
        reading.facts
        | {
            "tokens_read": len(reading.stream.tokens),
            "tokens_cut_off": len(reading.stream.tokens) - sum(window.end - window.start for window in windows),
            "windows": len(windows),
            "windows_without_weight": len(windows) - len(weighty),
            "windows_looping": sum(loops),
            "used": count,
            "tokens": count * spec.tokens,
        }
        | ({"skipped": passed} if passed else {})
    )
    return _Drawn(tokens, weights, facts)


def _too_few(stream: Stream, source: str, count: int, spec: CalibrationSpec, found: tuple[int, int, int]) -> str:
    """``found``: windows in all, those with some weight, and those of them that are no loops."""
    windows, weighty, usable = found
    without = f", {windows - weighty} of them without any weight" if weighty < windows else ""
    loops = f", {weighty - usable} of them loops (loops: keep takes them)" if usable < weighty else ""
    pieces = len(stream.breaks) - 1
    pack = f", or set pack: true, which runs across the {pieces} traces" if pieces > 1 else ""
    return (
        f"calibration: {source}: {len(stream.tokens)} tokens give {windows} samples of {spec.tokens}{without}{loops}; "
        f"{count} are asked for; lower samples or tokens, or add sources{pack}"
    )


def _take(stream: Stream, windows: Sequence[Window], length: int, front: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The windows' tokens (n, length) int64 and weights, the encoder's head in front of those that lack it."""
    first = torch.tensor(front, dtype=torch.int64)
    tokens = torch.empty(len(windows), length, dtype=torch.int64)
    weights = None if stream.weights is None else torch.empty(len(windows), length)
    for row, (start, end) in enumerate(windows):
        body = length - (end - start)
        tokens[row, :body] = first[:body]
        tokens[row, body:] = stream.tokens[start:end]
        if weights is not None and stream.weights is not None:
            weights[row, :body] = stream.plain
            weights[row, body:] = stream.weights[start:end]
    return tokens, weights


def _mixed(drawn: Sequence[_Drawn], spec: CalibrationSpec, front: Sequence[int]) -> Calibration:
    """All sources' samples in a seeded order."""
    order = torch.tensor(shuffled(spec.samples, spec.seed, "order of samples"))
    tokens = torch.cat([each.tokens for each in drawn])[order]
    weights = None
    if any(each.weights is not None for each in drawn):
        weighed = [torch.ones(each.tokens.shape) if each.weights is None else each.weights for each in drawn]
        weights = torch.cat(weighed)[order]
        total = float(weights.sum(dtype=torch.float64))
        for each, own in zip(drawn, weighed, strict=True):
            each.facts["weight_share"] = round(float(own.sum(dtype=torch.float64)) / total, 4)
    described = {
        "samples": spec.samples,
        "tokens": spec.tokens,
        "seed": spec.seed,
        "head": list(front),
        "sources": [each.facts for each in drawn],
        "figures": diagnose(tokens, weights),
    }
    digest = artifacts.fingerprint(tokens.tolist(), None if weights is None else weights.tolist())
    return Calibration(tokens, weights, described, digest)


def warnings(calibration: Calibration, widest_input: int | None, hidden: int | None = None) -> list[str]:
    """What a user should know before compressing with this set: see ``diagnosis.warn``."""
    return warn(calibration.described["figures"], widest_input, hidden)
