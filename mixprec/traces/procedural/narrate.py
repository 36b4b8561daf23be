"""From a problem to a trace: the narrator goes through the stages, and doubts, errs, turns, tries and recalls."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mixprec.traces.procedural import wording
from mixprec.traces.procedural.grammar import Deck, spoken
from mixprec.traces.procedural.problem import Problem, Stage, Test


class Section(NamedTuple):
    """One or a few sentences with one behaviour; ``opens``: a paragraph begins with it."""

    behaviour: str
    text: str
    opens: bool = False


class _Manner(NamedTuple):
    """How one trace is told: chances of a doubt, a wrong turn, a tried case, a recalled fact, and a new paragraph."""

    doubt: float
    turn: float
    test: float
    recall: float
    paragraph: float
    #: How often the whole is gone through once more.
    rounds: int


class Narrator:
    """Tells one problem."""

    def __init__(self, problem: Problem, chance: random.Random) -> None:
        self._problem, self._chance = problem, chance
        self._slots = {"task": problem.task, "topic": problem.topic, "answer": problem.answer}
        decks = ("DOUBT", "BACKTRACK", "BACKTRACK_TO", "EXAMPLE", "KNOWLEDGE", "GIVEN", "STEP", "CONCLUDE")
        self._decks = {name: Deck(getattr(wording, name), chance) for name in decks}
        self._ways = Deck(problem.ways, chance) if problem.ways else None
        self._manner = _Manner(
            doubt=min(0.8, chance.uniform(0.1, 0.45) * problem.doubtful),
            turn=chance.uniform(0.2, 0.9),
            test=chance.uniform(0.2, 0.9),
            recall=chance.uniform(0.4, 1.0),
            paragraph=chance.choice((0.1, 0.3, 0.6, 0.95)),
            rounds=chance.choice((0, 0, 1, 1, 2, 4)),
        )

    def sections(self) -> list[Section]:
        """The whole reasoning in order."""
        told = [*self._opening()]
        for stage in self._problem.stages:
            told += self._stage(stage)
        for _ in range(self._manner.rounds):
            told += self._again()
        told += self._end()
        return told

    def _happens(self, chance: float) -> bool:
        return self._chance.random() < chance

    def _say(self, behaviour: str, deck: str, opens: bool = False, **slots: str) -> Section:
        template = self._decks[deck].draw()
        return self._tell(behaviour, template, opens, **slots)

    def _tell(self, behaviour: str, template: str, opens: bool = False, **slots: str) -> Section:
        text = spoken(template, self._chance, self._slots | slots)
        return Section(behaviour, text, opens or self._happens(self._manner.paragraph))

    def _clause(self, behaviour: str, deck: str, slot: str, clause: str, opens: bool = False) -> Section:
        """A clause in a frame of the deck; what is a sentence already stays one."""
        if clause.rstrip("}|")[-1] in ".?!":
            return self._tell(behaviour, clause, opens)
        return self._say(behaviour, deck, opens, **{slot: clause})

    def _opening(self) -> Iterator[Section]:
        yield self._tell("initializing", self._chance.choice(wording.INITIALIZING[:3]), True)
        for _ in range(self._chance.choice((0, 0, 1, 1, 2))):
            yield self._tell("initializing", self._chance.choice(wording.INITIALIZING[3:]))

    def _stage(self, stage: Stage) -> Iterator[Section]:
        manner, chance = self._manner, self._chance
        opens = True
        for given in stage.given:
            if self._happens(0.7):
                yield self._clause("adding_knowledge", "GIVEN", "given", given, opens)
                opens = False
        facts = [fact for fact in stage.facts if self._happens(manner.recall)]
        if facts:
            yield self._clause("adding_knowledge", "KNOWLEDGE", "fact", facts.pop(0), opens)
        if stage.turn and self._happens(manner.turn):
            yield self._clause("deduction", "STEP", "step", stage.turn.step)
            if self._happens(manner.doubt):
                yield self._say("uncertainty_estimation", "DOUBT")
            yield self._say("backtracking", "BACKTRACK", wrong=stage.turn.wrong)
        for step in stage.steps:
            if facts and self._happens(0.4):
                yield self._clause("adding_knowledge", "KNOWLEDGE", "fact", facts.pop(0))
            yield self._clause("deduction", "STEP", "step", step)
            if self._happens(manner.doubt / 2):
                yield self._doubt(stage)
        for fact in facts:
            yield self._clause("adding_knowledge", "KNOWLEDGE", "fact", fact)
        if self._happens(manner.doubt):
            yield self._doubt(stage)
        tests = [test for test in stage.tests if self._happens(manner.test)]
        chance.shuffle(tests)
        for test in tests:
            yield self._example(test)

    def _doubt(self, stage: Stage) -> Section:
        if stage.doubts and self._happens(0.5):
            lead = "{Hmm, |Wait, |But |But wait, |Now, |Hmm. |||}"
            own = self._chance.choice(stage.doubts)
            return self._tell("uncertainty_estimation", lead + own)
        return self._say("uncertainty_estimation", "DOUBT")

    def _example(self, test: Test) -> Section:
        ends = wording.EXAMPLE_HOLDS if test.holds else wording.EXAMPLE_FAILS
        frame, end = self._decks["EXAMPLE"].draw(), self._chance.choice(ends)
        return self._tell("example_testing", f"{frame} {end}", case=test.case, outcome=test.outcome)

    def _again(self) -> Iterator[Section]:
        """Once more through a stage, in another way or out of doubt."""
        stage = self._chance.choice(self._problem.stages)
        yield self._doubt(stage)
        if self._ways and self._happens(0.7):
            yield self._say("backtracking", "BACKTRACK_TO", True, way=self._ways.draw())
        if stage.tests and self._happens(self._manner.test):
            yield self._example(self._chance.choice(stage.tests))
        if stage.facts and self._happens(self._manner.recall):
            yield self._clause("adding_knowledge", "KNOWLEDGE", "fact", self._chance.choice(stage.facts))
        for step in stage.steps:
            if self._happens(0.7):
                yield self._clause("deduction", "STEP", "step", step)
        yield self._tell("deduction", self._chance.choice(_SAME))

    def _end(self) -> Iterator[Section]:
        if self._happens(self._manner.doubt):
            yield self._say("uncertainty_estimation", "DOUBT", True)
        yield self._say("deduction", "CONCLUDE", True)
        if self._happens(self._manner.doubt / 2):
            yield self._say("uncertainty_estimation", "DOUBT")


_SAME: Sequence[str] = (
    "{So|Okay, so|Good,} {both|the two} {ways|approaches|methods} {agree|give the same{| result| answer}}.",
    "{That|This|It} {gives|leads to|comes out as} the same{| result| answer| as before}{|: <answer>}.",
    "{So|Therefore|Thus}, {it's|that's|the answer is} {still|again} <answer>.",
    "{So|And so|Yes, so} {I {get|end up with|arrive at}|we're back at} <answer>{| again| once more}.",
    "{That|This} {confirms|supports} {it|what I {had|found}|the result}.",
)


def paragraphs(sections: Sequence[Section]) -> tuple[str, str]:
    """The reasoning, and the same in the annotation syntax (docs/spans.md)."""
    plain, annotated = "", ""
    for section in sections:
        gap = "" if not plain else "\n\n" if section.opens else " "
        label = section.behaviour.replace("_", "-")
        plain += gap + section.text
        annotated += f'{gap}["{label}"] {section.text} ["end-section"]'
    return plain, annotated
