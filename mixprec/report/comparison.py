"""Several runs on one page: those that can be compared become one run's worth of variants, the others are named."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate import metrics
from mixprec.importance import artifact
from mixprec.importance import shift as shifts
from mixprec.report.folder import RunFolder, read_run
from mixprec.report.formatting import plural

#: What a model was asked, in a summary and in each of its variants.
_ASKED = ("benchmarks", "likelihood")


class Compared(NamedTuple):
    """``run``: all variants of ``runs`` together, each named with its run. ``left_out``: (what, why not)."""

    run: RunFolder
    runs: Mapping[str, RunFolder]
    left_out: Sequence[tuple[str, str]]

    @property
    def one_model(self) -> bool:
        """Whether all runs are of the same weights: else each variant is compared with its own original alone."""
        return len({_model(run) for run in self.runs.values()}) == 1


def compare(folders: Sequence[Path]) -> Compared:
    """Read runs and put those together that were measured on the same texts by the same rules, the most that there are.

    Raises UserError where fewer than two can be compared, with why each of the others can't.
    """
    found: dict[str, RunFolder] = {}
    left_out: list[tuple[str, str]] = []
    for name, folder in _names(folders).items():
        try:
            found[name] = read_run(folder)
        except UserError as problem:
            left_out.append((name, str(problem)))
    kept, others = _alike(found, _measured_on)
    left_out += others
    if len(kept) < 2:
        told = "; ".join(f"{name}: {why}" for name, why in left_out) or "only one run was given"
        raise UserError(f"mixprec report --compare: fewer than two runs can be compared ({told})")
    scored = {}
    for what in _ASKED:
        scored[what], others = _alike(
            {name: run for name, run in kept.items() if run.summary.get(what)}, _scored_by(what)
        )
        left_out += [(f"{name}, {what}", why) for name, why in others]
    importances = {name: run.importance for name, run in kept.items() if run.importance}
    moved, others = _shift(importances)
    left_out += others
    return Compared(_merged(kept, scored, importances, moved), kept, left_out)


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """A run's name is that of its folder, with as many folders above as it takes to tell it from the others."""
    resolved = list(dict.fromkeys(folder.resolve() for folder in folders))
    depth = 1
    while len({each.parts[-depth:] for each in resolved}) < len(resolved):
        depth += 1
    return {"/".join(each.parts[-depth:]): each for each in resolved}


def _variants(run: RunFolder) -> Mapping[str, Mapping[str, Any]]:
    return run.summary.get("variants") or {}


def _model(run: RunFolder) -> str:
    return str((run.summary.get("provenance") or {}).get("model") or run.summary.get("model"))


def _measured_on(run: RunFolder) -> tuple[Hashable, str]:
    evaluation = run.summary.get("evaluation") or {}
    texts, rules = evaluation.get("texts"), evaluation.get("rules")
    if not evaluation:
        return None, "its recipe evaluates nothing"
    if texts is None:
        return None, "doesn't say what it was measured on; run its recipe again, which keeps what is done"
    return (texts, rules), f"measured on other texts, or by other rules (texts {str(texts)[:8]}, rules {rules})"


def _scored_by(what: str) -> Callable[[RunFolder], tuple[Hashable, str]]:
    """How a run's ``what``, benchmarks or likelihood, came about: rules, protocol and questions."""

    def key(run: RunFolder) -> tuple[Hashable, str]:
        asked = run.summary[what]
        rules, protocol = asked.get("scoring_rules"), asked.get("protocol") or {}
        if rules is None:
            return None, "not said by which rules they were scored; run the recipe again, which keeps what is done"
        entries = (each for variant in _variants(run).values() for each in (variant.get(what) or {}).items())
        rows = sorted({(name, str(entry["rows"])) for name, entry in entries if "rows" in entry})
        return artifacts.fingerprint(rules, protocol, rows), "other questions, another protocol or other scoring rules"

    return key


def _alike(
    found: Mapping[str, RunFolder], key: Callable[[RunFolder], tuple[Hashable, str]]
) -> tuple[dict[str, RunFolder], list[tuple[str, str]]]:
    """The most runs that have one key, of equally many the first ones; and why each of the others has not."""
    keys = {name: key(run) for name, run in found.items()}
    known = [each for each, _ in keys.values() if each is not None]
    most = max(known, key=known.count, default=None)
    kept = {name: run for name, run in found.items() if most is not None and keys[name][0] == most}
    return kept, [(name, why) for name, (_, why) in keys.items() if name not in kept]


def _shift(importances: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """Where importance moved from the first run to the next that has another one of the same modules."""
    (first, *others) = importances or [""]
    left_out: list[tuple[str, str]] = []
    for name in others:
        if _scores(importances[name]) == _scores(importances[first]):
            continue
        try:
            return shifts.shift(importances[first], importances[name], (first, name)), left_out
        except UserError as problem:
            left_out.append((f"{name}, importance", str(problem)))
    return None, left_out


def _scores(importance: Mapping[str, Any]) -> dict[str, Any]:
    return artifact.scores_of(importance)


def _merged(
    kept: Mapping[str, RunFolder],
    scored: Mapping[str, Mapping[str, RunFolder]],
    importances: Mapping[str, Mapping[str, Any]],
    moved: Mapping[str, Any] | None,
) -> RunFolder:
    first = next(iter(kept.values()))
    variants, layouts, token_kl = {}, {}, {}
    for run_name, run in kept.items():
        for name, variant in _variants(run).items():
            label = f"{name} ({run_name})"
            hidden = {what: None for what in _ASKED if run_name not in scored[what]}
            variants[label] = {**variant, **hidden}
            if name in run.layouts:
                layouts[label] = run.layouts[name]
            if name in run.token_kl:
                token_kl[label] = run.token_kl[name]
    models = list(dict.fromkeys(str(run.summary.get("model") or "") for run in kept.values()))
    # Without the differences to a run's own baseline, which is another variant in each.
    asked = {what: next((run.summary[what].get("protocol") for run in scored[what].values()), None) for what in _ASKED}
    summary = {
        "title": f"{plural(len(kept), 'run')} compared: {', '.join(kept)}",
        "model": ", ".join(models),
        "variants": variants,
        "evaluation": first.summary["evaluation"],
        "differences": _differences(kept),
        **{what: None if protocol is None else {"protocol": protocol} for what, protocol in asked.items()},
    }
    return RunFolder(
        "compared",
        summary,
        importance=next(iter(importances.values()), None) if len(importances) == 1 else None,
        layouts=layouts,
        token_kl=token_kl,
        held_out=first.held_out,
        shift=moved,
    )


def _differences(kept: Mapping[str, RunFolder]) -> dict[str, dict[str, Any]]:
    """Paired differences of every two variants, of one run or of two: they were measured on the same passages."""
    passages = {f"{name} ({run})": found for run, each in kept.items() for name, found in each.passages.items()}
    sizes = {label: [row["tokens"] for row in found] for label, found in passages.items()}
    return {
        first: {
            second: metrics.kl_difference(passages[first], passages[second])
            for second in passages
            if second != first and sizes[second] == sizes[first]
        }
        for first in passages
    }
