"""Where a module ranks by importance, under the paper's formulas and the released code's, and what aliasing does.

python benchmarks/ranking_study.py IMPORTANCE [--released IMPORTANCE] [--module last_up] --json OUT

IMPORTANCE is a folder of ``mixprec attribute`` with both presets (``--compare released``), whose statistics are scored
again with the behaviours' sums of means shared (``alias_means``) or not; no model is needed. With ``--released`` the
statistics of preset released come from another folder, made from spans of the released rule. Intervals are the middle
95% of 1,000 bootstrap resamples of the traces.

Keys of OUT
    module              the module asked for
    modules             linear modules that are ranked
    traces              traces scored
    cut_tokens          longer traces were cut here
    released_spans      which spans preset released was computed from
    rank                of the module, and its interval: paper and released as they are, and each with aliasing turned
                        on or off
    top                 the module that ranks first
    stability           mean Spearman correlation of a resample's ranking with the whole's
    spearman_alias      rank correlation with and without aliasing, all else equal
    top10_alias         how many of the ten highest modules are the same with and without aliasing
    spearman_presets    rank correlation of paper and released
    top10_presets       how many of their ten highest modules are the same
    spearman_behaviours  mean rank correlation between two of the four behaviours
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine

#: name -> preset and whether behaviours share their means.
VARIANTS = {
    "paper": ("paper", False),
    "paper_aliased": ("paper", True),
    "released": ("released", True),
    "released_unaliased": ("released", False),
}


def main() -> None:
    from mixprec.importance import artifact

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("importance", type=Path)
    parser.add_argument("--released", type=Path, help="folder with preset released on spans of the released rule")
    parser.add_argument("--module", default="last_up")
    parser.add_argument("--json", required=True, help="where the figures go")
    arguments = parser.parse_args()
    made = artifact.load(arguments.importance / "importance.json")
    folders = {"paper": arguments.importance, "released": arguments.released or arguments.importance}
    figures = study(folders, made, arguments.module)
    figures["released_spans"] = "released rule" if arguments.released else "the same as paper"
    machine.write(arguments.json, __file__, figures, folders=(arguments.importance, arguments.released))


def study(folders: dict[str, Path], made: dict[str, Any], wanted: str) -> dict[str, Any]:
    """All figures."""
    from mixprec.importance import artifact

    labels = [module["label"] for module in made["modules"]]
    last = max(module["layer"] for module in made["modules"])
    module = wanted.replace("last_", f"{last}_")
    number, behaviours = labels.index(module), list(made["behaviours"])
    scored = {name: score(folders[preset], preset, alias) for name, (preset, alias) in VARIANTS.items()}
    figures: dict[str, Any] = {
        "module": module,
        "modules": len(labels),
        "traces": made["traces"],
        "cut_tokens": made["provenance"]["max_tokens"],
    }
    rank, top, stability = ({name: {} for name in VARIANTS} for _ in range(3))
    for name, (scores, spread) in scored.items():
        for row, behaviour in enumerate(behaviours):
            ranks = artifact.ranks(scores[row])
            entry = spread[row]
            rank[name][behaviour] = [
                int(ranks[number]),
                *(entry["rank_intervals"] or [[None, None]] * len(ranks))[number],
            ]
            top[name][behaviour] = labels[int(ranks.argmin())]
            stability[name][behaviour] = entry["stability"] and entry["stability"]["spearman_mean"]
    figures |= {"rank": rank, "top": top, "stability": stability}
    pairs = {
        "alias": {"paper": ("paper", "paper_aliased"), "released": ("released_unaliased", "released")},
        "presets": {"": ("paper", "released")},
    }
    for suffix, of in pairs.items():
        for key in ("spearman", "top10"):
            figures[f"{key}_{suffix}"] = {}
        for name, (one, other) in of.items():
            for row, behaviour in enumerate(behaviours):
                found = artifact.agreement(scored[one][0][row], scored[other][0][row])
                place = f"{name}.{behaviour}".strip(".")
                figures[f"spearman_{suffix}"][place] = found["spearman"]
                figures[f"top10_{suffix}"][place] = found["top10_overlap"]
    figures["spearman_behaviours"] = {name: between(scores) for name, (scores, _) in scored.items()}
    return figures


def between(scores: Any) -> float | None:
    """Mean rank correlation of all pairs of behaviours that have scores."""
    from mixprec.importance import artifact

    rows = [row for row in scores if any(row)]
    found = [artifact.agreement(one, other)["spearman"] for one, other in itertools.combinations(rows, 2)]
    return sum(found) / len(found) if found else None


def score(folder: Path, preset: str, alias: bool) -> tuple[Any, Any]:
    """Scores (behaviours, modules) and their intervals, from a folder's statistics."""
    from mixprec.importance import bootstrap, scores
    from mixprec.importance.options import RESAMPLES, AttributionOptions

    options = AttributionOptions.of(preset).model_copy(update={"alias_means": alias})  # type: ignore[arg-type]
    paths, slices = sorted((folder / "traces").glob("*.safetensors")), dict(columns(folder))
    found = scores.score(paths, preset, slices, options)[0].importance
    return found.numpy(), bootstrap.intervals(paths, preset, slices, options, found, RESAMPLES)


def columns(folder: Path) -> Iterator[tuple[str, slice]]:
    """Where each module's output lies in the statistics: in the artifact's order, as wide as its steering vectors."""
    from mixprec.core import artifacts
    from mixprec.importance import artifact

    made = artifact.load(folder / "importance.json")
    behaviour, start = next(iter(made["behaviours"])), 0
    with artifacts.open_tensors(folder / "steering.safetensors") as file:
        for module in made["modules"]:
            width = file.get_slice(f"{behaviour}/{module['address']}").get_shape()[0]
            yield module["address"], slice(start, start + width)
            start += width


if __name__ == "__main__":
    main()
