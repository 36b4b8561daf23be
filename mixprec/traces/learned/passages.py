"""Hand-written reasoning with a label for every line (``data/passages/``), read as sequences of labelled sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import resources
from typing import NamedTuple

from mixprec.traces.sentences import Sentence, split

#: The letter in front of a line -> its behaviour.
LETTERS = {
    "i": "initializing",
    "d": "deduction",
    "k": "adding_knowledge",
    "e": "example_testing",
    "u": "uncertainty_estimation",
    "b": "backtracking",
}


class Sequence(NamedTuple):
    """One trace for training: its prompt, its sentences, and their behaviours."""

    prompt: str
    sentences: list[Sentence]
    behaviours: list[str]


def load() -> dict[str, list[Sequence]]:
    """All passages, by the name of their file."""
    folder = resources.files("mixprec.traces").joinpath("data", "passages")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".txt")), key=lambda file: file.name)
    return {
        file.name.removesuffix(".txt"): list(parse(file.read_text(encoding="utf-8").splitlines())) for file in files
    }


def parse(lines: Iterable[str]) -> Iterator[Sequence]:
    """``? `` begins a prompt, which goes on to the first line with a behaviour's letter; an empty line is a break.

    Raises ValueError for a line that is neither.
    """
    prompt: list[str] = []
    sections: list[tuple[str, str, bool]] = []
    opens = True
    for line in lines:
        letter, _, text = line.partition(" ")
        if letter == "?":
            if sections:
                yield of_sections("\n".join(prompt), sections)
            prompt, sections, opens = [text], [], True
        elif letter in LETTERS and text:
            sections.append((LETTERS[letter], text, opens))
            opens = False
        elif not line:
            opens = True
        elif not sections:
            prompt.append(line)
        else:
            raise ValueError(f"{line!r}: begin the line with one of {', '.join(LETTERS)} and a blank")
    if sections:
        yield of_sections("\n".join(prompt), sections)


def of_sections(prompt: str, sections: Iterable[tuple[str, str, bool]]) -> Sequence:
    """Labelled stretches of text, each of one or a few sentences; the third entry: whether a paragraph begins there."""
    sentences: list[Sentence] = []
    behaviours: list[str] = []
    for behaviour, text, opens in sections:
        for number, sentence in enumerate(split(text)):
            sentences.append(sentence._replace(opens=opens and number == 0))
            behaviours.append(behaviour)
    return Sequence(prompt, sentences, behaviours)
