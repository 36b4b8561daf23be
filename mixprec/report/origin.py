"""Where a run's numbers come from, in words, and the command that makes them again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from mixprec.report.folder import RunFolder
from mixprec.report.formatting import integer, plural, significant

#: Who annotates traces.
_ANNOTATORS = {"cues": "cue phrases", "classifier": "mixprec's classifier"}
#: A recipe that takes files of the folder that --data names.
_DATA = re.compile(r"[\s\"'\[{,]data:\w")


def command(run: RunFolder, folder: str | None = None) -> str:
    """What repeats the run from its own recipe in ``folder``, by default the run's; empty where the recipe is not
    there."""
    if run.recipe is None:
        return ""
    lines = [line for line in run.recipe.splitlines() if not line.lstrip().startswith("#")]
    name = run.name if folder is None else folder
    parts = ["mixprec", "run", f"{name}/recipe.yaml", "--out", f"{name}_again"]
    told = " ".join(map(shlex.quote, parts))
    return f"{told} --data FOLDER" if _DATA.search("\n".join(lines)) else told


def in_words(run: RunFolder) -> list[str]:
    """Sentences on the program, the model, what was measured on, and the scores."""
    found = run.summary.get("provenance") or {}
    return [each for each in (_program(found), _model(run.summary, found), _texts(run), _scores(run)) if each]


def _program(found: Mapping[str, Any]) -> str:
    if not found.get("mixprec"):
        return ""
    revision = f" (git revision {str(found['git_revision'])[:12]})" if found.get("git_revision") else ""
    packages = ", ".join(f"{name} {version}" for name, version in (found.get("packages") or {}).items())
    return f"Made by mixprec {found['mixprec']}{revision}" + (f" with {packages}." if packages else ".")


def _model(summary: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    name, commit = summary.get("model"), found.get("commit") or found.get("revision")
    if not name:
        return ""
    identity = found.get("model")
    identity = identity.get("sha256") if isinstance(identity, Mapping) else identity
    at = f" at commit {commit}" if commit else ""
    learned = summary.get("distilled")
    told = f"The model is what {name}{at} became by distillation" if learned else f"The model is {name}{at}"
    told += f"; the fingerprint of its files begins with {str(identity)[:12]}." if identity else "."
    return f"{told} {_lesson(learned)}" if learned else told


def _lesson(learned: Mapping[str, Any]) -> str:
    before, after = (significant(learned[key]) for key in ("before", "after"))
    return (
        f"It learned from {plural(learned['traces'], 'trace')} ({integer(learned['tokens'])} tokens) in "
        f"{plural(learned['steps'], 'step')}: the loss on {plural(learned['validation_traces'], 'other')} went from "
        f"{before} to {after} nats per token."
    )


def _texts(run: RunFolder) -> str:
    evaluation = run.summary.get("evaluation") or {}
    names = {"traces": "held-out trace", "text": "passage"}
    parts = [
        f"{plural(part['passages'], names[name])} ({integer(part['tokens'])} tokens)"
        for name in names
        if (part := evaluation.get(name) or {}).get("tokens") and part.get("passages")
    ]
    if not parts:
        return ""
    digest = f", whose fingerprint begins with {evaluation['texts'][:12]}" if evaluation.get("texts") else ""
    return f"Every variant was compared with the original, token by token, on {' and '.join(parts)}{digest}."


def _scores(run: RunFolder) -> str:
    if not run.importance:
        return ""
    traces, annotated = run.importance.get("traces") or 0, run.summary.get("annotated") or {}
    preset = run.importance.get("preset")
    rules = f", by the rules of the preset {preset}" if preset else ""
    by = _ANNOTATORS.get(annotated.get("by", "")) or (annotated.get("judge") and f"the judge {annotated['judge']}")
    found = f"Importance is from {plural(traces, 'trace' if by else 'annotated trace')}"
    if annotated.get("own") and (written := run.summary.get("generated")):
        most = plural(written["max_new_tokens"], "token")
        found += f" that the model wrote for the prompts of {written['prompts']}, at most {most} each"
    return f"{found}{rules}; {by} annotated them." if by else f"{found}{rules}."
