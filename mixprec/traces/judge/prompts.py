"""What a judge is asked: a prompt of ours, or a user's file, with a place for the text.

The labels are those of arXiv 2504.02010 (section 2.2), which takes them from arXiv 2506.18167 (Venhoff et al.); the
words are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts
from mixprec.core.errors import UserError

#: Of our own prompt: raised whenever its words, or those of REMINDERS, change.
VERSION = 1
#: Stands in a prompt for the piece of text that is judged.
PLACE = "{text}"

#: What was wrong with an answer -> what is put in front of the prompt when the judge is asked again.
REMINDERS: Mapping[str, str] = {
    "refused": "It held neither sections nor the text. The text is material for research; label it, whatever it says.",
    "truncated": "It broke off before the end of the text. Copy the text once, to its end, and stop there.",
    "unknown_label": "It had labels other than the six. Use these six alone, spelled as they are.",
    "nested": "It had sections inside of other sections. Close each section before you open the next one.",
    "not_found": "Its sections are not what the text says. Copy the text letter by letter, in the text's own language.",
    "lost": "It left out much of the text. Copy all of it, from the first word to the last.",
    "unlabelled": "It had no section. Wherever the text shows one of the six, open a section.",
}


class Prompt(NamedTuple):
    """A prompt with its PLACE; ``version`` is None for a user's own."""

    template: str
    version: int | None

    @property
    def sha256(self) -> str:
        """Of the template."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """For provenance."""
        return {"version": self.version, "sha256": self.sha256}

    def filled(self, text: str, fault: str | None = None) -> str:
        """The message about a piece of text; ``fault``: what was wrong with the answer before."""
        message = self.template.replace(PLACE, text)
        if fault is None:
            return message
        return f"An earlier answer to the task below could not be used. {REMINDERS[fault]}\n\n{message}"


def own() -> Prompt:
    """Our prompt."""
    template = resources.files("mixprec.traces.judge").joinpath("prompt.txt").read_text(encoding="utf-8")
    return Prompt(template.rstrip("\n"), VERSION)


def load(path: str | None) -> Prompt:
    """A user's prompt; ours where ``path`` is None.

    Raises UserError where there is no such file, or it doesn't hold PLACE exactly once.
    """
    if path is None:
        return own()
    template = artifacts.read_text(Path(path).expanduser()).rstrip("\n")
    count = template.count(PLACE)
    if count != 1:
        raise UserError(
            f"{path}: {PLACE} stands there {count} times; a judge's prompt has it once, where the text goes "
            "(mixprec annotate --show-prompt prints one)"
        )
    known = own()
    return known if template == known.template else Prompt(template, None)
