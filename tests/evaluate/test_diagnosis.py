"""Loops, cuts, thinking and gibberish: made ones, and the paper's released outputs."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.evaluate.diagnosis import diagnose, find_loop, summarise, z_function
from mixprec.traces import store

PROSE = (
    "Okay, so I need to find out whether Bonnie performs in school talent shows. The premises say that people either "
    "perform or are inactive. Let me go through them one by one. First, suppose that she is engaged with events. "
    "Then she can't be a student, because students chaperone nothing. Hmm, but wait, that would contradict the third "
    "premise, wouldn't it? Let me think again about who attends. If she attends, she is a member of the club.\n\n"
)


@given(st.text("ab", max_size=60))
def test_z_function_against_its_definition(text: str) -> None:
    found = z_function(text)
    for index in range(1, len(text)):
        length = 0
        while index + length < len(text) and text[length] == text[index + length]:
            length += 1
        assert found[index] == length


@pytest.mark.parametrize("cut", range(0, 30, 7))
def test_a_repeated_sentence(cut: int) -> None:
    text = PROSE + "So the answer must be uncertain. " * 40
    loop = find_loop(text[: len(text) - cut])
    assert loop is not None and loop.kind == "sentence" and loop.period == 33
    assert abs(loop.start - len(PROSE)) <= 33


def test_a_repeated_chunk() -> None:
    chunk = "Wait, let me check that again. If x is 7, then y is 12. But y is even, so no. "
    loop = find_loop(PROSE + chunk * 12 + chunk[:31])
    assert loop is not None and loop.kind == "chunk" and loop.period == len(chunk)


def test_counting_is_a_loop_too() -> None:
    text = PROSE + "".join(f"Step {i}: add one and go on to the next one.\n" for i in range(5, 60))
    assert find_loop(text) is not None


def test_sentences_in_no_fixed_order() -> None:
    rng = random.Random(1)
    pool = ["I think it is true.", "Wait, maybe not at all.", "Let me check this again.", "The premise says so."]
    loop = find_loop(PROSE + " ".join(rng.choice(pool) for _ in range(120)))
    assert loop is not None and loop.kind == "chunk" and loop.period is None


@pytest.mark.parametrize(
    "text",
    ["", " ", "a", PROSE, PROSE + "-" * 400, PROSE + "1111 " * 100, PROSE + "No. No. No.", "x = 1\n" * 3, "\f\t" * 300],
)
def test_what_is_no_loop(text: str) -> None:
    assert find_loop(text) is None


def test_a_loop_that_ended_by_itself_is_no_collapse() -> None:
    text = PROSE + "I can't decide this. " * 30
    assert not diagnose(text, "stop").collapsed
    assert diagnose(text, "length").collapsed
    assert not diagnose(PROSE, "length").collapsed


@pytest.mark.parametrize(
    "unit", ["a", "ab ", "So the answer is 4. ", "word" * 700 + ". ", "<think>", "$x$ ", "\\frac{1}"]
)
def test_100_kb_loops_take_linear_time(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    diagnose(text, "length", "prompt")
    diagnose(text + "$" + "\\(" * 3000, "length", "prompt")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("output", "prompt", "state"),
    [
        ("Hm.\n</think>\n4", "2+2?\n<think>\n", "closed"),
        ("Hm.", "2+2?\n<think>\n", "open"),
        ("<think>Hm.", "2+2?", "open"),
        ("4", "2+2?", "absent"),
    ],
)
def test_thinking(output: str, prompt: str, state: str) -> None:
    assert diagnose(output, "stop", prompt).thinking == state


def test_gibberish_and_drift() -> None:
    assert diagnose(PROSE * 3, "stop", "Question?").gibberish == 0
    rng = random.Random(0)
    noise = " ".join("".join(rng.choice("bcdfgXQWzkptRL") for _ in range(9)) for _ in range(200))
    assert diagnose(noise, "stop").gibberish > 0.8
    formulas = "We have $\\mathbb{Z}_{pqrst}$ and \\[\\xrightarrow{bcdfgh}\\] in https://xyzzy.example/qwrtp"
    assert diagnose(formulas, "stop").gibberish == 0
    assert diagnose("\ufffd\ufffd\ufffd", "stop").gibberish == 1
    half = "因此答案是不确定的" * 5 + "a" * 45
    assert diagnose(half, "stop", "Is it?").foreign == pytest.approx(0.5)
    assert diagnose(half, "stop", "真的吗?").foreign == 0
    assert diagnose("Let α + β = π, é", "stop", "Is it?").foreign == 0


def test_density_tells_loops_from_noise() -> None:
    loop, prose = (diagnose(text, "stop").density for text in ("So it is. " * 500, PROSE))
    assert loop < 0.02 < 0.3 < prose


def test_summary_counts() -> None:
    looped = PROSE + "So the answer must be uncertain. " * 40
    outputs = [(PROSE, "stop"), (looped, "length"), ("", "stop")]
    found = summarise([diagnose(*each, "q <think>") for each in outputs], [10, 30, None])
    assert (found["n"], found["cut"], found["collapsed"], found["collapsed_sentence"], found["empty"]) == (
        3,
        1,
        1,
        1,
        1,
    )
    assert found["thinking"] == {"closed": 0, "open": 3, "absent": 0}
    assert found["tokens"] == {"total": 40, "mean": 20, "n": 2}
    assert found["bytes"] == len(PROSE) + len(looped)
    assert summarise([], [])["gibberish"] is None


def test_the_papers_outputs_are_language(shared_data: Path) -> None:
    traces = store.load(str(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"))
    found = [diagnose(trace.output, "stop", trace.prompt) for trace in traces]
    assert max(each.gibberish for each in found) < 0.05
    assert sum(each.gibberish for each in found) / len(found) < 0.005
    assert sum(each.looping is not None for each in found) < 20
