"""The figures of pareto.py from rows: ratios of pipelines of one size, their intervals, and costs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from allocation import BUDGETS
from intervals import divided, interval, ratio
from pareto_pipelines import FLAGSHIPS, MIXTURES, NEEDED, OURS, PIPELINES, Job

#: PIPELINE@SIZE -> the rows of its draws.
Rows = Mapping[str, Sequence[Any]]
#: A ratio of KLs and its 95% interval.
Compared = tuple[float | None, list[float] | None]
NOTHING: Compared = (None, None)
#: Size -> our pipeline tuned, and the same untuned.
TUNED = {"3.25": ("gptq_tuned@3.25", "gptq@3.25"), "3.5": ("exchanged_tuned@3.5", "exchanged@3.5")}


def drawn(rows: Mapping[str, Any]) -> dict[str, list[Any]]:
    """PIPELINE@SIZE -> the rows of its draws; none without the first one."""
    found: dict[str, list[Any]] = {}
    for name in sorted(rows, key=lambda name: (name.partition("#")[0], Job.parse(name).draw)):
        plain = name.partition("#")[0]
        if plain in rows:
            found.setdefault(plain, []).append(rows[name])
    return found


def kl(rows: Sequence[Any], part: str = "both") -> float:
    """Mean KL of the draws of a pipeline."""
    return mean(row["evaluation"][part]["kl_mean"] for row in rows)


def figures(rows: Rows, arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of OUT but the table."""
    pairs = {size: pair(rows, size) for size in BUDGETS}
    tuned = {size: compared(rows, *names) for size, names in TUNED.items()}
    recovered, bounds = compared(rows, pairs["3.5"][0], "gptq@3.25")
    return {
        **by_size("kl_ratio_vs_best_pipeline", {size: compared(rows, *names) for size, names in pairs.items()}),
        "pipelines": {size: list(names) for size, names in pairs.items()},
        **by_size("kl_ratio_equal_file", {size: compared(rows, *equal_file(rows, size)) for size in BUDGETS}),
        **both("tune_gain", tuned["3.25"]),
        **both("tune_gain_350", tuned["3.5"]),
        "tune_overfit": overfit(rows, *TUNED["3.25"]),
        "tune_overfit_350": overfit(rows, *TUNED["3.5"]),
        "gap_recovered": None if recovered is None else 1 - recovered,
        "gap_recovered_ci": bounds and [1 - bound for bound in reversed(bounds)],
        **by_size(
            "file_ratio_llamacpp",
            {m: compared(rows, *no_larger(rows, f"gguf@{m}", f"llamacpp@{m}")) for m in MIXTURES},
        ),
        **both("guided_gain", compared(rows, "guided@3.25", "gptq@3.25")),
        **both("behaviour_cost", compared(rows, "backtracking@3.25", "gptq_tuned@3.25")),
        **both("behaviour_gain", compared(rows, "backtracking@3.25", "gptq_tuned@3.25", "behaviour_by_passage")),
        "time_vs_autoround": time_vs_autoround(rows),
        "limit_ratio": limit_ratio(rows),
        "cpu_speedup_gptq_vs_llmcompressor": speedup(rows, "llmcompressor"),
        "cpu_speedup_gptq_vs_gptqmodel": speedup(rows, "gptqmodel"),
        "measured": sum(map(len, rows.values())),
        "model": Path(arguments.model).name,
        "samples": arguments.samples,
        "passages": arguments.passages,
        "quick": arguments.quick,
    }


def both(key: str, found: Compared) -> dict[str, Any]:
    """A ratio and its interval."""
    return {key: found[0], f"{key}_ci": found[1]}


def by_size(key: str, found: Mapping[str, Compared]) -> dict[str, Any]:
    """The worst ratio, null unless all are known, and each one: 3.25 bits have the suffix _325."""
    top = max(found.values(), key=lambda each: each[0] or 0) if all(each[0] for each in found.values()) else NOTHING
    result = both(key, top)
    for size, each in found.items():
        result |= both(f"{key}_{round(100 * float(size))}" if size in BUDGETS else f"{key}_{size}", each)
    return result


def compared(rows: Rows, own: str | None, other: str | None, part: str = "kl_by_passage") -> Compared:
    """KL of one pipeline over that of another, over all their draws."""
    if own not in rows or other not in rows:
        return NOTHING
    both = [rows[own], rows[other]]
    sums = [mean(sum(passage["kl_sum"] for passage in row[part]) for row in draws) for draws in both]
    return ratio(*sums), interval(both, divided, part=part)


def who(name: str) -> str:
    return PIPELINES[name.partition("@")[0]].who


def pair(rows: Rows, size: str) -> tuple[str | None, str | None]:
    """Ours of a size, and the peer's with the least KL at no more effective bits; None where one is not measured.

    llama.cpp's files hold other embeddings, and are none of these.
    """
    own = next((f"{name}@{size}" for name in FLAGSHIPS if f"{name}@{size}" in rows), None)
    missing = any(f"{name}@{size}" not in rows for name in NEEDED[size])
    return own, None if missing else best(rows, "effective_bits", float(size), but=("llamacpp",))


def best(rows: Rows, measure: str, limit: float, but: tuple[str, ...] = ()) -> str | None:
    """The peer's pipeline with the least KL that is no larger, ``but`` for those of some peers."""
    peers = [
        name
        for name, draws in rows.items()
        if who(name) not in (OURS, *but) and draws[0][measure] <= limit * (1 + 1e-9)
    ]
    return min(peers, key=lambda name: kl(rows[name]), default=None)


def equal_file(rows: Rows, size: str) -> tuple[str | None, str | None]:
    """Ours that spends the bytes of the peer's best file of a size on all of the model, and the peer's with the least
    KL at no more bytes, llama.cpp's files among them."""
    theirs = pair(rows, size)[1]
    if theirs is None:
        return None, None
    limit = rows[theirs][0]["file_bytes"]
    return no_larger(rows, f"whole@{size}", theirs)[0], best(rows, "file_bytes", limit)


def no_larger(rows: Rows, own: str, other: str | None) -> tuple[str | None, str | None]:
    """The pair, where both were measured and our file is no larger than theirs."""
    known = own in rows and other in rows
    return (own, other) if known and rows[own][0]["file_bytes"] <= rows[other or ""][0]["file_bytes"] else (None, None)


def overfit(rows: Rows, tuned: str, plain: str) -> float | None:
    """By how much a gain on calibration samples is larger than that on other text."""
    gain = compared(rows, tuned, plain)[0]
    if gain is None:
        return None
    seen = [mean(row["kl_calibration"] for row in rows[name]) for name in (tuned, plain)]
    return ratio(gain, ratio(*seen))


def time_vs_autoround(rows: Rows) -> float | None:
    """CPU seconds of our cheapest pipeline that is better than AutoRound's, over its."""
    other = rows.get("autoround200@3.25")
    if other is None:
        return None
    ours = [
        draws[0]["cpu_seconds"]
        for name, draws in rows.items()
        if who(name) == OURS and Job.parse(name).size == "3.25" and kl(draws) < kl(other) and alike(draws, other)
    ]
    return ratio(min(ours, default=None), other[0]["cpu_seconds"])


def speedup(rows: Rows, peer: str) -> float | None:
    """CPU seconds of a peer's GPTQ at w3g64 over ours, each in its faster type, on one machine."""
    theirs, ours = (
        [rows[job] for job in (f"{name}@3.25", f"{name}_bf16@3.25") if job in rows] for name in (peer, "gptq")
    )
    here = [[draws for draws in types if alike(theirs[0], draws)] for types in (theirs, ours)] if theirs else [[]]
    if not all(here):
        return None
    return ratio(*(min(draws[0]["cpu_seconds"] for draws in types) for types in here))


def limit_ratio(rows: Rows) -> float | None:
    """Forward pass and second moments over all of plain GPTQ, in the faster type."""
    found = [rows[name][0] for name in ("gptq@3.25", "gptq_bf16@3.25") if name in rows]
    fast = min(found, key=lambda row: row["cpu_seconds"], default=None)
    least = fast and fast.get("limit")
    return ratio(sum(least.values()), fast["cpu_seconds"]) if least else None


def alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two pipelines were measured on one machine, with as many threads."""
    return all(one[0][key] == other[0][key] for key in ("machine", "threads"))
