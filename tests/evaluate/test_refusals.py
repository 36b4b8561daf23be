"""Refusals and verdicts on every option: one rule in all the forms in which models write them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from test_scoring import OPTIONS, THOUGHT, WHO, ask

from mixprec.evaluate.benchmarks.schema import Kind
from mixprec.evaluate.scoring import score

FORMS = [
    "\\boxed{\\text{%s}}",
    "\\boxed{%s}",
    "\\[\n\\boxed{\\text{%s.}}\n\\]",
    "**%s**",
    "**%s.**",
    "Answer: %s",
    "**Answer:** %s.",
    "**Answer: %s**",
    "**Final Answer**\n\n%s",
    "### Final Answer\n\\boxed{\\text{%s}}",
    "<answer>%s</answer>",
    "The answer is: %s.",
    "\\text{%s}",
    "%s.",
    "%s",
    "We looked at it all.\n\n**%s**",
    "We looked at it all.\n\n%s.",
]
DENIALS = [
    "None of the given times",
    "None of the above",
    "None of the options",
    "none of the provided times are possible",
    "None of the given times allow Samantha to go to the swimming pool",
    "No valid option",
    "no option is correct",
    "No such time exists",
    "There is no available time",
    "None",
]
CANNOT_TELL = [
    "Not determinable",
    "not determinable with the given information",
    "Cannot be determined",
    "It cannot be determined from the given information",
    "Not enough information",
    "Insufficient information",
    "Undetermined",
    "Indeterminate",
    "Unknown",
    "Unable to determine",
    "It is impossible to determine",
]
#: What both count as; docs/benchmarks.md says so.
RULE: dict[Kind, tuple[tuple[str, str | None], tuple[str, str | None]]] = {
    "letter": (("wrong", "none of the options"), ("none", None)),
    "truth": (("wrong", "none of the options"), ("wrong", "Uncertain")),
    "integer": (("wrong", ""), ("none", None)),
    "words": (("none", None), ("none", None)),
}


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("kind", RULE)
def test_refusals_follow_one_rule(kind: Kind, form: str) -> None:
    for phrases, (outcome, answer) in zip((DENIALS, CANNOT_TELL), RULE[kind], strict=True):
        for phrase in phrases:
            verdict = score(ask(kind, "B", message=WHO), THOUGHT + form.replace("%s", phrase), finished=True)
            assert verdict.outcome == outcome, (phrase, verdict)
            assert answer == "" or verdict.answer == answer, (phrase, verdict)


def test_uncertain_is_right_where_it_is_the_label() -> None:
    for phrase in CANNOT_TELL:
        assert score(ask("truth", "Uncertain"), f"{THOUGHT}\\boxed{{\\text{{{phrase}}}}}").outcome == "correct"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("None of the other options fit, so the answer is (B).", "B"),
        ("(B) is correct. None of the others are possible.", "B"),
        ("\\boxed{\\text{None of the given times}}\n\nWait, 7am is free: \\boxed{B}", "B"),
        ("It cannot be determined from premise 1 alone. With premise 2 the correct option is (B).", "B"),
        ("The correct answer is (B). There is no other available time.", "B"),
        ("She could not have gone at any of the given times.", "none of the options"),
        ("Option (D) was checked.\n\nTherefore, none of the given times are possible.", "none of the options"),
        ("Looking at option (D), she was out. The answer is that no valid time exists.", "none of the options"),
        ("The answer is that no option is correct.", "none of the options"),
        ("By the timeline, there is no time when she could have gone.", "none of the options"),
        ("\\boxed{\\emptyset}", "none of the options"),
        ("(A) is eliminated because she was out.\n(C) is eliminated.\n(D) is eliminated.\n(B) remains.", "B"),
    ],
)
def test_refusals_beside_answers(text: str, expected: str) -> None:
    assert score(ask("letter", "B"), THOUGHT + text).answer == expected


@pytest.mark.parametrize("held", ["?", " ", "...", "\\ldots", "\\text{?}", "\\_\\_"])
@pytest.mark.parametrize("kind", RULE)
def test_a_box_without_an_answer_in_it_is_none(kind: Kind, held: str) -> None:
    box = f"\\boxed{{{held}}}"
    assert score(ask(kind, "B", message=WHO), f"Hmm.\n</think>\n\n{box}", finished=True).outcome == "none"
    assert score(ask("letter", "B"), f"Hmm.\n</think>\n\nIt is \\boxed{{B}}.\n\n{box}").answer == "B"


VERDICTS = [
    ("✅", "❌"),
    ("✔️", "✘"),
    ("☑", "☒"),
    ("✓", "✗"),
    ("Yes", "No"),
    ("**yes**", "no"),
    ("`yes`", "`no`"),
    ("possible", "impossible"),
    ("Possible", "Not possible"),
    ("valid", "invalid"),
    ("matches", "does not match"),
    ("Fits", "Doesn't fit"),
    ("free", "busy"),
    ("Available", "Occupied"),
    ("✅ Yes", "❌ No"),
    ("👉 **Yes!**", "👉 No."),
    ("No conflict ✅", "Conflict ❌"),
]
#: ``{k}`` the letter, ``{o}`` its time, ``{v}`` its verdict; what stands in front of the rows.
ROWS = {
    "| ({k}) | {o} | {v} |": "| Option | Time | Verdict |\n|---|---|---|",
    "| {k} | {v} | She was seen there, or nobody saw her. |": "| Option | Possible? | Reason |\n|:--|:-:|--|",
    "| {o} | {v} |": "| Time | |\n|---|---|",
    "{k} | {v}": "Option | Verdict\n--- | ---",
    "- ({k}) {o}: {v}": "Let us look at each option.",
    "- **({k}) {o}** – {v}, see above.": "",
    "1. Option {k}: {v}": "",
    "* {o} → {v}": "",
    "({k}) {o} ({v})": "",
    "**{k}:** {v}\n": "",
    "- ({k}) {v}": "",
    "- ({k}) {o}: nobody said where she was. **{v}**": "",
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("verdicts", VERDICTS, ids="/".join)
def test_one_option_marked_is_the_answer(row: str, verdicts: tuple[str, str]) -> None:
    """Exactly one, in any order; two are none; a sentence behind them goes before."""
    shuffle = random.Random(row).sample
    for marked, outcome, answer in (
        ("B", "correct", "B"),
        ("C", "wrong", "C"),
        ("BC", "none", None),
        ("BD", "none", None),
    ):
        rows = [row.format(k=k, o=OPTIONS[k], v=verdicts[k not in marked]) for k in shuffle("ABCD", 4)]
        text = THOUGHT + "\n".join([ROWS[row], *rows])
        verdict = score(ask("letter", "B"), text, finished=True)
        assert (verdict.outcome, verdict.answer) == (outcome, answer), (text, verdict)
        behind = f"{text}\n\nTherefore, she could have gone between 7am and 11am."
        assert score(ask("letter", "B"), behind).answer == "B"


def columns(marked: str) -> str:
    marks = " | ".join("✅" if k in marked else "❌" for k in OPTIONS)
    return f"| {' | '.join(f'({k})' for k in OPTIONS)} |\n|---|---|---|---|\n| {marks} |"


def cells(marked: str) -> str:
    return "| " + " | ".join(f"({k}) {o} {'✅' if k in marked else '❌'}" for k, o in OPTIONS.items()) + " |"


@pytest.mark.parametrize("layout", [columns, cells])
def test_options_beside_each_other(layout: Callable[[str], str]) -> None:
    assert score(ask("letter", "B"), THOUGHT + layout("B")).answer == "B"
    assert score(ask("letter", "B"), THOUGHT + layout("AB"), finished=True).outcome == "none"
    assert score(ask("letter", "B"), THOUGHT + layout("")).answer == "none of the options"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("letter", "- [ ] (A)\n- [x] (B)\n- [ ] (C)\n- [ ] (D)", "B"),
        ("letter", "| Option | Busy? |\n|---|---|\n| (A) | Yes |\n| (B) | No |\n| (C) | Yes |\n| (D) | Yes |", "B"),
        (
            "letter",
            "| Option | Free? | Open? | |\n|---|---|---|---|\n| (A) | yes | no | ❌ |\n| (B) | yes | yes | ✅ |",
            "B",
        ),
        ("letter", "- (A): ❌\n- (C): ✅\n\nSo the correct option is (B).", "B"),
        ("letter", "The correct answer is (B).\n\n- (A): ❌\n- (B): ✅\n- (C): ✅", "B"),
        ("truth", "| True | ❌ |\n| False | ❌ |\n| Uncertain | ✅ |", "Uncertain"),
        ("truth", "| Label | Fits? |\n|---|---|\n| True | no |\n| False | **yes** |\n| Uncertain | no |", "False"),
        ("truth", "- True: No\n- False: **Yes**\n- Uncertain: No", "False"),
        ("truth", "- (A) True ❌\n- (B) False ❌\n- (C) Uncertain ✅", "Uncertain"),
        ("truth", "- True ✅\n- False ✅\n- Uncertain ❌", None),
        ("truth", "| All dogs bark | ✅ |\n| Rex is a dog | ✅ |\n\nThe conclusion is false.", "False"),
        ("truth", "| Premise | Truth |\n|---|---|\n| 1 | True |\n| 2 | False |\n\nIt is uncertain.", "Uncertain"),
    ],
)
def test_other_lists_of_verdicts(kind: Kind, text: str, expected: str | None) -> None:
    verdict = score(ask(kind, "B"), THOUGHT + text, finished=True)
    assert (verdict.answer, verdict.outcome == "none") == (expected, expected is None), verdict
