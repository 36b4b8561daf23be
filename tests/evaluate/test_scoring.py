"""Scoring: the ways in which models write answers, and outputs that would break a careless reader."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.benchmarks.schema import Kind
from mixprec.evaluate.scoring import counting_unfinished, score
from mixprec.evaluate.scoring.overlap import exact_match, f1, normalise

OPTIONS = {"A": "6pm to 9pm", "B": "7am to 11am", "C": "1pm to 2pm", "D": "2pm to 6pm"}
CONCLUSION = "Rex is a brown dog."
#: A thinking that is closed, with every answer in it so that none of it may leak.
THOUGHT = "Hmm, maybe 7, or true, or (A)? Perhaps it's uncertain. Wait, perhaps the answer is (D).\n</think>\n\n"


def ask(kind: Kind, answer: str = "?", *, message: str = "", aliases: tuple[str, ...] = ()) -> Question:
    extra = {"letter": {"options": OPTIONS}, "truth": {"conclusion": CONCLUSION}}.get(kind, {})
    return Question("1", "test", kind, message, message, answer, aliases, extra)


INTEGERS = [
    (r"Thus the answer is \boxed{033}.", "33"),
    (r"\[ \boxed{\text{204}} \]", "204"),
    (r"\boxed{204 \text{ minutes}}", "204"),
    (r"$\boxed{104^\circ}$", "104"),
    (r"\boxed{m+n = 8 + 17 = 25}", "25"),
    (r"\boxed{\dfrac{50}{2}}", "25"),
    (r"\boxed{\frac{25}{8}}", "25/8"),
    (r"\boxed{25.0}", "25"),
    (r"\boxed{1,024}", "1024"),
    (r"\boxed{1{,}024}", "1024"),
    (r"\boxed{  809 }", "809"),
    (r"\boxed{{\bf 809}}", "809"),
    (r"\boxed{\mathbf{809}}", "809"),
    (r"\boxed 5", "5"),
    (r"First \boxed{12}, but after checking, \boxed{13}.", "13"),
    (r"\boxed{13} and then an empty \boxed{}", "13"),
    (r"\boxed{13} and one that never closes \boxed{14", "13"),
    (r"\boxed{\frac{p}{q} = \frac{8}{17}}. Hence $p+q = 25$. **Answer:** 25", "25"),
    ("Here $\x0crac{8}{17}$ is lowest, so \x08oxed{25}", "25"),
    ("The value is \\boxed{25\text{ cm}}".replace("\\text", "\text"), "25"),
    ("**Answer: 25**", "25"),
    ("**Answer:** $25$", "25"),
    ("### Final Answer\n\n25", "25"),
    ("**Final Answer**\nThe sum is $m + n = 8 + 17 = 25$.", "25"),
    ("The answer is 25, since 8 + 17 = 25.", "25"),
    ("The final answer is therefore m+n=25.", "25"),
    ("Adding up, we get 12.\n\nTherefore, the number of ways is 25.", "25"),
    ("There are 3 cases.\n\nSo there are **25** such numbers.", "25"),
    (r"The answer is not 12. The answer is \(25\).", "25"),
    (r"If the answer is 12, then $x$ is odd, but it is even. The answer is 25.", "25"),
    (r"\boxed{\text{no solution}}", "no solution"),
    (r"\boxed{-7}", "-7"),
    (r"\boxed{25}<｜end▁of▁sentence｜>", "25"),
    (r"\boxed{25}</s>", "25"),
    ("The box measures 3 by 4.\nThe boxed region has area 12, and the answer is 25.", "25"),
    ("\\boxed{25 \\pmod{1000}}", "25"),
    ("\\boxed{\\left(25\\right)}", "25"),
    ("\\boxed{ \\textbf{(B) } 25}", "25"),
    ("\\boxed{\\$25}", "25"),
    ("\\boxed{1024} is too large, hence the remainder is \\boxed{24}", "24"),
    ("Thus, $m+n$ equals $8+17$, which is $25$.", "25"),
    ("25", "25"),
    ("The final answer is $\\boxed{025}$. I hope it is correct.", "25"),
]


@pytest.mark.parametrize(("text", "expected"), INTEGERS)
def test_integers(text: str, expected: str) -> None:
    verdict = score(ask("integer", expected), THOUGHT + text)
    assert (verdict.answer, verdict.outcome, verdict.place) == (expected, "correct", "answer"), verdict


TRUTHS = [
    ("**Answer:** True", "True"),
    ("**Answer: Uncertain.**", "Uncertain"),
    ("Answer: The conclusion is false.", "False"),
    ("\\boxed{\\text{Uncertain}}", "Uncertain"),
    ("The conclusion is **true** because every premise holds.", "True"),
    ("The conclusion is untrue.", "False"),
    ("The conclusion is not true.", "False"),
    ("The statement is neither true nor false given these premises.", "Uncertain"),
    ("The conclusion is not necessarily true.", "Uncertain"),
    ("We cannot determine whether the conclusion is true or false.", "Uncertain"),
    ("The conclusion cannot be definitively determined to be true.", "Uncertain"),
    ("There is not enough information to say that Rex is brown.\n\nThe conclusion is unknown.", "Uncertain"),
    ("The task: say whether it is true, false, or uncertain.\n\nThe conclusion is false.", "False"),
    (
        "If Rex barks, the conclusion is true. If not, the conclusion is false. So the conclusion is uncertain.",
        "Uncertain",
    ),
    (
        "The conclusion is uncertain because if Rex barks, it would be true, and otherwise it would be false.",
        "Uncertain",
    ),
    ("1. Premise 1: dogs bark. (True)\n2. Premise 2: Rex is a dog. (True)\n\nThe conclusion is false.", "False"),
    ("The conclusion that Rex is a brown dog is supported by the premises.", "True"),
    ("The conclusion does not follow: it is not supported by the premises.", "Uncertain"),
    ("The premises contradict each other on cats, but the conclusion is true.", "True"),
    ("The conclusion is incorrect.", "False"),
    ("**Conclusion:** Rex is a brown dog.", "True"),
    ("**Conclusion:** Rex is not a brown dog.", "False"),
    ("Therefore, Rex isn't a brown dog.", "False"),
    ("**Uncertain**", "Uncertain"),
    ("true", "True"),
    ("FALSE", "False"),
    ("The answer is: *False*", "False"),
    ("The conclusion is true.\n\nWait, that overlooks premise 3. The conclusion is false.", "False"),
    ("The truth of the matter: trueness aside, the conclusion is uncertain.", "Uncertain"),
    ('Based on the premises, the conclusion "Rex is a brown dog" is **uncertain**.', "Uncertain"),
    ("It is impossible to conclude that Rex is brown.", "Uncertain"),
    ("The answer is: The provided conclusion is **True**.", "True"),
    ("**Answer:** \n\nThe conclusion is **uncertain**.", "Uncertain"),
    ("Therefore, the conclusion is **not necessarily true**.", "Uncertain"),
    ("The conclusion does not logically follow from the premises.", "Uncertain"),
    ("The conclusion logically follows from the premises.", "True"),
    ("It's not possible to determine if Rex is brown.", "Uncertain"),
    ("The statement is true only if Rex is a dog, which we don't know.\n\nThe conclusion is uncertain.", "Uncertain"),
    ("The conclusion is true if Rex barks. Since he barks, it is true.", "True"),
    ("The conclusion would be true if Rex barked; as he doesn't, it is false.", "False"),
    ("**False.** Rex is not brown.", "False"),
    ("The conclusion contradicts premise 3.", "False"),
    ("The premises do not provide enough information to determine whether Rex is brown.", "Uncertain"),
    ('The conclusion "Rex is a brown dog" is not uncertain; it is true.', "True"),
    ("The correct answer is: **C) Uncertain**", "Uncertain"),
    ("The conclusion is false, because we cannot conclude that all dogs are brown.", "False"),
    ("The conclusion is true because either Rex is brown or it is false that he is a dog.", "True"),
    ("So, the given conclusion is \\(\\boxed{\\text{False}}\\).", "False"),
    ("- Premise 1 holds.\n- Premise 2 is false for cats.\n\nOverall, the conclusion is true.", "True"),
    ("Based on the above, I would say the conclusion is false.", "False"),
    ("The conclusion can't be true.", "False"),
    ("The conclusion that Rex is not brown is true.", "True"),
    ("The conclusion that Rex is not always brown is false.", "False"),
    ("The conclusion that it is unknown who Rex is, is true.", "True"),
    ("The conclusion isn’t true.", "False"),
    ("The conclusion isn’t logically true.", "False"),
    ("The conclusion that Rex isn't brown is not true.", "False"),
    ("The conclusion is true, while its converse is false.", "True"),
    ("The conclusion is neither definitively true nor definitively false.", "Uncertain"),
    ("**Answer:** The conclusion that Rex does not bark is **uncertain**.", "Uncertain"),
    ("**Answer:** The conclusion that Rex does not bark is false, since it is true that all dogs bark.", "False"),
    ("Rex must be a brown dog.\n\n1. All dogs here are brown.\n2. Rex is here.", "True"),
    ("The conclusion does not necessarily follow from the premises.", "Uncertain"),
    ("Therefore, the conclusion is not definitively true.", "Uncertain"),
    ("The premises don't say whether Rex is brown, so the conclusion is uncertain.", "Uncertain"),
    (
        "The conclusion is **uncertain** as the premises don't say that he's brown; if he were, it would be true.",
        "Uncertain",
    ),
    ("We don't have enough information to conclude that Rex is brown.", "Uncertain"),
    ("Answer: The statement is logically false.", "False"),
    ("Since all dogs here are brown and Rex is one of them, the conclusion holds.", "True"),
    ("The truth value of the conclusion is uncertain.", "Uncertain"),
    ("Thus, it's false that Rex is brown.", "False"),
    (
        "If Rex barks, he is brown, so the conclusion is true. Nothing says that he does.\n\nIt's uncertain.",
        "Uncertain",
    ),
]


@pytest.mark.parametrize(("text", "expected"), TRUTHS)
def test_truths(text: str, expected: str) -> None:
    verdict = score(ask("truth", expected), THOUGHT + text)
    assert (verdict.answer, verdict.place) == (expected, "answer"), verdict


LETTERS = [
    ("Answer: (B)", "B"),
    ("**Answer: B**", "B"),
    ("**Answer:** B) 7am to 11am", "B"),
    ("Answer: B. 7am to 11am", "B"),
    ("\\boxed{B}", "B"),
    ("\\boxed{\\text{(B)}}", "B"),
    ("\\boxed{(B) 7am to 11am}", "B"),
    ("\\boxed{7am to 11am}", "B"),
    ("The correct answer is **(B) 7am to 11am**.", "B"),
    ("The correct option is B.", "B"),
    ("Option B is the only one that fits.", "B"),
    ("She could only have gone between 7am and 11am.", "B"),
    ("**7 AM to 11 AM**", "B"),
    ("The only window is 7:00am - 11:00am.", "B"),
    ("A time between 7am and 11am is free.", "B"),
    ("The answer is a time in the morning: (B).", "B"),
    ("(A) is taken, (C) is taken and (D) is taken.\n\nThe answer is (B).", "B"),
    ("(B)", "B"),
    ("B", "B"),
    ("It can't be (A). Therefore the index is (B).", "B"),
    ("**Answer:** (B) 2pm to 6pm", "B"),  # the letter was asked for
    ("**Answer:** (A) or (B)", "A or B"),
    ("**Answer:** None of the above", "none of the options"),
    ("The answer is (B) 7am to 11am, not (D) 2pm to 6pm.", "B"),
    ("Final Answer: B", "B"),
    ("**Final Answer:** \n\n**B**", "B"),
    ("The correct index is **B**.", "B"),
    ("The answer is **B) 7am to 11am**.", "B"),
    ("(Option B)", "B"),
    ("answer: `B`", "B"),
    ("The final answer is: $\\boxed{B}$", "B"),
    ("The answer is B because A, C and D are taken.", "B"),
    ("The index (letter) is B.", "B"),
    ("Susan could have gone between **7am and 11am**, which is option **(B)**.", "B"),
    ("So the correct choice is (B), as (A) would be after closing.", "B"),
    ("The only time she was free is 7am–11am.", "B"),
    ("The correct answer is the second one, (B).", "B"),
    ("She went from 7am to 11am.\n\nIndex: B", "B"),
    ("\\[\\boxed{\\text{B) 7am to 11am}}\\]", "B"),
    ("\\( \\boxed{\\textbf{(B)}} \\)", "B"),
    ("Thus, the correct answer is:\n\n- B) 7am to 11am", "B"),
    ("Answer: between 7am and 11am (Option B)", "B"),
    ("[B]", "B"),
    ("Answer - B", "B"),
    ("the answer is (b)", "B"),
    ("答案：(B)", "B"),
    ("最终答案是 B。", "B"),
]


@pytest.mark.parametrize(("text", "expected"), LETTERS)
def test_letters(text: str, expected: str) -> None:
    verdict = score(ask("letter", "B"), THOUGHT + text)
    assert (verdict.answer, verdict.place) == (expected, "answer"), verdict
    assert verdict.outcome == ("correct" if expected == "B" else "wrong")


WHO = "Who played King George in The King's Speech?"
WHEN = "When was the Battle of Hastings fought?"
MANY = "How many people live in the capital of Freedonia?"
WORDS = [
    (WHO, "**Answer:** Colin Firth", "Colin Firth"),
    (WHO, "The role of King George was played by **Colin Firth**.", "Colin Firth"),
    (WHO, "\\boxed{\\text{Colin Firth}}", "Colin Firth"),
    (WHO, "Colin Firth", "Colin Firth"),
    (WHO, '"Colin Firth."', "Colin Firth"),
    (WHO, "King George in *The King's Speech* was played by Colin Firth.", "Colin Firth"),
    (WHO, "Colin Firth played King George in The King's Speech.", "Colin Firth"),
    (WHO, "King George was played by Colin Firth, who won an award for it.", "Colin Firth"),
    (WHO, "**Final Answer**\nThe king was played by **Colin Firth**.", "Colin Firth"),
    (WHO, "So, the answer is: Colin Firth.", "Colin Firth"),
    (WHO, "In **The King's Speech**, it was **Colin Firth** who played King George.", "Colin Firth"),
    (WHEN, "The Battle of Hastings was fought on 14 October 1066.", "14 October 1066"),
    (WHEN, "The Battle of Hastings was fought in the year 1066 in Sussex.", "1066"),
    (WHEN, "**Answer:** The Battle of Hastings was fought in 1066.", "1066"),
    (MANY, "The capital of Freedonia has approximately 1,335,907 people.", "1,335,907"),
    (MANY, "About 1.3 million people live in the capital of Freedonia, as of 2020 or so.", "2020"),
    (MANY, "**Answer:** 1,335,907", "1,335,907"),
    (
        "What record label does the spouse of the performer belong to?",
        "The record label that the spouse of the performer belongs to is Warner Bros. Records.",
        "Warner Bros. Records",
    ),
    (
        "Who is the father of the father of Anwer Ali?",
        "The father of the father of Anwer Ali is Sayyid Ali.",
        "Sayyid Ali",
    ),
    (
        "Where was Popper's academic appointment?",
        "Popper's academic appointment was at the University of London.",
        "University of London",
    ),
    ("What is the name of the castle in the city?", "**Casa Loma** is the castle.", "Casa Loma"),
    (
        "Who was the president during the war?",
        "The president during the war was Abraham Lincoln (1809–1865).",
        "Abraham Lincoln",
    ),
    ("When was the region established?", "The region was established on **September 23, 1932**.", "September 23, 1932"),
    ("How many teams were in the league of the club?", "There were twelve teams in the league of the club.", "twelve"),
    ("Who sang the song X?", "The song X was sung by *The Beatles*.", "The Beatles"),
    ("Who sang the song X?", "The song X was sung by **The Beatles** in **1965**.", "The Beatles"),
    ("Who sang the song X?", "Answer: The Beatles\n\nExplanation: they sang it in 1965.", "The Beatles"),
    ("Who sang the song X?", "<answer>The Beatles</answer>", "The Beatles"),
    ("What is the population of state A?", "The population is about 1.3 million.", "1.3 million"),
    ("Which city is in the same county as X?", "Sucha Beskidzka is in the same county as X.", "Sucha Beskidzka"),
    (WHO, "While there is no information on the other roles, King George was played by Colin Firth.", "Colin Firth"),
    (
        WHO,
        "1. **The film**: The King's Speech.\n2. **The king**: played by Colin Firth.\n\nSo, Colin Firth.",
        "Colin Firth",
    ),
    (WHO, "I cannot name the others. **King George** was played by **Colin Firth**.", "Colin Firth"),
]


@pytest.mark.parametrize(("question", "text", "expected"), WORDS)
def test_words(question: str, text: str, expected: str) -> None:
    verdict = score(ask("words", "?", message=question), THOUGHT + text)
    assert (verdict.answer, verdict.place) == (expected, "answer"), verdict


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry, I cannot answer that question.",
        "The exact number is not publicly disclosed.",
        "Without more details, it's impossible to provide a number.",
        "**Answer:** Unknown",
        "**Answer:** This cannot be determined from what is given.",
        "I don't have access to that information.",
        "The film is well known. However, the actor is unknown.",
        "I can't tell who it was. **Please provide more context**.",
        "\\boxed{\\text{Unknown}}",
    ],
)
def test_declines(text: str) -> None:
    verdict = score(ask("words", "Colin Firth", message=WHO), f"{text}\n</think>\n\n{text}")
    assert (verdict.outcome, verdict.answer, verdict.f1) == ("none", None, 0.0), verdict


@pytest.mark.parametrize("kind", ["integer", "truth", "letter", "words"])
@pytest.mark.parametrize("output", ["", " \n\t ", "</think>", "\n</think>\n\n", "Hmm, let me think about"])
def test_nothing(kind: Kind, output: str) -> None:
    assert score(ask(kind, message=WHO), output).outcome == "none"


def test_an_answer_may_stand_in_a_closed_thinking() -> None:
    """Where nothing behind </think> answers, what the thinking concluded counts, and the verdict says so."""
    verdict = score(ask("integer", "25"), "We get 12. So the answer is \\boxed{25}.\n</think>\n")
    assert (verdict.outcome, verdict.place) == ("correct", "thinking")
    verdict = score(ask("integer", "25"), "So the answer is \\boxed{12}.\n</think>\n\nThe answer is \\boxed{25}.")
    assert (verdict.outcome, verdict.place) == ("correct", "answer")


def test_a_solution_that_was_cut_has_no_number() -> None:
    """The last number of a solution that the limit cut is none of its conclusion; a box in the thinking is."""
    cut = "Let us see.\n</think>\n\nStep 1. Therefore there are 12 cases to be looked at, and the first of th"
    assert score(ask("integer", "12"), cut).outcome == "none"
    assert score(ask("integer", "25"), cut.replace("see.", "see: \\boxed{25}.")).place == "thinking"


def test_conclusions_whose_words_sound_like_verdicts() -> None:
    question = Question("1", "folio", "truth", "", "", "False", (), {"conclusion": "It is not true that Rex barks."})
    for text in (
        "The conclusion 'It is not true that Rex barks' is false.",
        "The conclusion that it is not true that Rex barks is **false**.",
        '**Answer:** The conclusion "It is not true that Rex barks" is false.',
    ):
        assert score(question, THOUGHT + text).outcome == "correct", text


def test_unfinished_thinking() -> None:
    said = "So the answer is (B). But wait, let me check again. She was at the mall. "
    verdict = score(ask("letter", "B"), said * 500)
    assert (verdict.outcome, verdict.why, verdict.stated) == ("none", "unfinished thinking", "B")
    assert counting_unfinished(ask("letter", "B"), verdict).outcome == "correct"
    whole = "She was free from 7am to 11am.\n\n**Answer:** (B)"
    assert score(ask("letter", "B"), whole).outcome == "correct"
    assert score(ask("letter", "B"), whole, finished=False).outcome == "none"
    assert score(ask("letter", "B"), "So the answer is (B), but then sh", finished=True).outcome == "correct"


LOOPS = [
    "**Final Answer**\n\\boxed{137}\n\nWait, no. ",
    "The answer is (B). But wait, the options are (A), (B), (C) and (D). ",
    "The conclusion is not true, or the conclusion is not false, or ",
    "The population is approximately 735,601.\n",
    "not ",
    "if ",
    "answer ",
    "answer: ",
    "the answer is ",
    "a a a a ",
    "((((",
    "{{{{",
    "\\boxed{",
    "\\text{",
    "\\frac{1}{",
    "**",
    "__",
    "* * ",
    "\n\n\n",
    "true or ",
    "cannot ",
    "\t\x0c\x08",
    "1,",
    "12 ",
    "<|",
    "(A) or ",
    "7am to ",
    "the year ",
    "9" * 50,
    "é̈漢字🙂 ",
]


@pytest.mark.parametrize("unit", LOOPS, ids=repr)
@pytest.mark.parametrize("closed", [False, True], ids=["thinking", "answer"])
def test_loops_are_scored_in_milliseconds(unit: str, closed: bool) -> None:
    """100 kB of anything; the limit is CPU time, ten times what it takes, against regular expressions that explode."""
    output = ("x\n</think>\n" if closed else "") + unit * (100_000 // len(unit))
    for kind in ("integer", "truth", "letter", "words"):
        start = time.process_time()
        verdict = score(ask(kind, "137", message=WHO), output)
        assert time.process_time() - start < 0.25, (kind, verdict)
        assert score(ask(kind, "137", message=WHO), output, finished=True).outcome in ("correct", "wrong", "none")


FRAGMENTS = (
    r"\boxed{ | } | ** | Answer: | the answer is | (A) | B | not | true | false or | uncertain | 12 | / | = | , "
)
FRAGMENTS += r"| \frac{ | \text{ | </think> | . | if | the conclusion | is | 7am to 11am | $ "
pieces = st.sampled_from([*FRAGMENTS.split("|"), "\n\n", "\n", "\x0c"]) | st.text(max_size=8)


@given(st.lists(pieces, max_size=40).map("".join), st.sampled_from(["integer", "truth", "letter", "words"]))
def test_any_text_has_a_verdict(output: str, kind: Kind) -> None:
    """Whatever it is, it is scored; with no answer there are no points, and points are between 0 and 1."""
    verdict = score(ask(kind, "12", message=WHO), output)
    assert (verdict.outcome == "none") == (verdict.answer is None) == (verdict.place is None)
    assert 0.0 <= verdict.em <= verdict.f1 <= 1.0
    assert (verdict.outcome == "correct") == (verdict.em == 1.0)


@given(st.integers(0, 999), st.sampled_from(["\\boxed{%s}", "**Answer:** %s", "The answer is $%s$.", "### Answer\n%s"]))
def test_any_integer_is_read(value: int, form: str) -> None:
    assert score(ask("integer", str(value)), THOUGHT + form % value).outcome == "correct"
    assert score(ask("integer", str(value)), THOUGHT + form % f"{value:03}").outcome == "correct"


def test_normalisation() -> None:
    assert normalise("The  Colin, Firth!") == "colin firth"
    assert normalise("an apple a day") == "apple day"
    assert normalise("Theatre") == "theatre"
    assert exact_match("the 1920s.", ["1920s"]) == 1.0
    assert exact_match("physics", ["physic", "Physics"]) == 1.0
    assert f1("Capitol Records", ["Warner Bros. Records"]) == pytest.approx(0.4)
    assert f1("third third generation", ["third generation"]) == pytest.approx(0.8)
    assert f1("The", ["a"]) == 1.0  # nothing is left of either, as in SQuAD
    assert f1("", ["Paris"]) == 0.0


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlap_is_symmetric(one: str, other: str) -> None:
    assert f1(one, [other]) == pytest.approx(f1(other, [one]))
    assert f1(one, [one]) == exact_match(one, [one]) == 1.0
    assert exact_match(one, [other]) <= f1(one, [other])


def test_without_any_thinking_a_cut_output_may_have_answered() -> None:
    """A chat prompt opens no thinking: what the model said before the limit is what a person was given."""
    cut = "**Answer:** (B)\n\nExplanation: she was at the mall from 11am, and the shop opened at ni"
    assert score(ask("letter", "B"), cut, finished=False, opened=False).outcome == "correct"
    assert score(ask("letter", "B"), cut, finished=False).outcome == "none"
    assert score(ask("letter", "B"), f"<think>\n{cut}", finished=False, opened=False).outcome == "none"
    assert score(ask("integer", "12"), "Therefore there are 12 ca", finished=False, opened=False).outcome == "none"
