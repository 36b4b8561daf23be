"""Which outputs have ended where nobody knows, and thinking that no scorer may read."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from test_benchmarks import FOLDERS
from test_scoring import WHO, ask

from mixprec.core import artifacts
from mixprec.evaluate import benchmarks
from mixprec.evaluate.benchmarks.schema import Kind
from mixprec.evaluate.scoring import score
from mixprec.traces.thinking import parsed

#: Thinking that was cut, each with the word "answer" in its last line.
CUT: list[tuple[Kind, str]] = [
    ("integer", "Okay, so I need to count. There are 12 of them. So the answer is 25. But wait, let me check the"),
    ("integer", "Okay, we have 25 ways in total I think, given everything so far. So the answer must be 25"),
    ("integer", "Let me think about this problem again, hmm. I think I get 25 now. Wait, the answer might be 25."),
    ("integer", "We need to find m+n. We compute 25/8. The answer expects m+n, so 33, but maybe I should check it"),
    ("integer", "The user wants a number. Let me compute it. Hmm, 5 times 5 is 25.\n\nSo answer: 25? Check: 24 + 1 ="),
    ("letter", "Okay, she was at the mall, then at the shop all day until noon. So the answer should be (B) 7am"),
    ("letter", "Alright, so she was free then and not at all busy, it seems to me.\n\nTherefore, the answer is (B)."),
    (
        "letter",
        "Alright, let's see. She was free from 7am to 11am, I think. The options say (B). The answer is (B) 7am to",
    ),
    ("truth", "Okay, let me look at the premises one by one. So the answer is that the conclusion is true, but"),
    ("truth", "Hmm, Rex barks, so I think the conclusion is false. Wait, then the answer would be false. Let me see."),
    ("words", "Okay, so I need to find out who played the king. I think the answer is Colin Firth, but I am not"),
    ("words", "So, I need to figure out who it was in the film. I recall that the answer could be Colin Firth."),
    ("words", "The role of the king in the film that came out in 2010 was played by **Colin Fir"),
]


@pytest.mark.parametrize(("kind", "text"), CUT)
@pytest.mark.parametrize("tag", ["", "<think>\n", "[THINK]", "<|channel|>analysis<|message|>", "analysis"])
def test_cut_thinking_has_no_answer(kind: Kind, text: str, tag: str) -> None:
    verdict = score(ask(kind, message=WHO), tag + text)
    assert (verdict.outcome, verdict.why) == ("none", "unfinished thinking"), verdict


T = "The first case gives 12 and the second 13, as was said.\n\n"
ENDED: list[tuple[Kind, str, str]] = [
    ("integer", T + "\\boxed{25}\n\n---", "25"),
    ("integer", T + "/* \\boxed{25}\n*/", "25"),
    ("integer", T + "<details>\n\\boxed{25}\n</details>", "25"),
    ("integer", T + "```\n\\boxed{25}\n```\n\n***\n", "25"),
    ("integer", T + "\\boxed{25}\n\n### Summary\n- We counted cases\n- The sum is 25", "25"),
    ("integer", T + "**Final Answer**\n\n\\boxed{25}\n\n**Summary:** the cases give 25 in total", "25"),
    ("integer", "Alright, so I count. Hmm, 12 and 13, I think.\n\n\\boxed{25}\n\n---\n", "25"),
    ("integer", "Alright, so I count. Hmm, 12 and 13, I think.\n\n\\[\n\\boxed{25}\n\\]", "25"),
    ("integer", "Alright, so I count. Hmm, 12 and 13, I think.\n\n\\boxed{25}\n\n**Summary:** it is 25.", "25"),
    ("integer", "Alright, so I count. Hmm, 12 and 13, I think.\n\n**Answer:** 25", "25"),
    ("integer", "So the number of such people is 12 + 13, and therefore the answer is 25.\n\n" * 5, "25"),
    ("letter", "Alright, she was free then, I think. Let me check.\n\n**Answer: (B)**", "B"),
    ("letter", "Alright, she was free then, I think. Let me check.\n\n**Index of the Answer:**\n(B)\n```", "B"),
    ("letter", "**Answer:** (A) 6pm to 9pm\n**Index:** A", "A"),
    ("letter", "She was free then, so the correct answer is (B) 7am to 11am, as nobody saw her.\n\n" * 6, "B"),
    ("truth", "Rex barks. Therefore, the conclusion that Rex is a brown dog is uncertain.\n" * 5, "Uncertain"),
    ("words", "The role of King George in the film was played by Colin Firth, an actor.\n" * 5, "Colin Firth"),
    ("words", "Colin Firth", "Colin Firth"),
    ("words", "I believe that the role of the king in this film from 2010 was played by Colin Firth.", "Colin Firth"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "answer"), ENDED)
@pytest.mark.parametrize("finished", [None, True])
def test_outputs_that_ended_have_one(kind: Kind, text: str, answer: str, finished: bool | None) -> None:
    verdict = score(ask(kind, message=WHO), text, finished)
    assert (verdict.answer, verdict.place) == (answer, "unclosed"), verdict


def test_a_thinking_in_a_channel_is_none_though_the_model_stopped() -> None:
    text = "We need the sum.\n\n\\boxed{25}"
    assert score(ask("integer"), "<think>\n" + text, finished=True).answer == "25"
    for channel in ("<|channel|>analysis<|message|>", "analysis"):
        assert score(ask("integer"), channel + text, finished=True).outcome == "none"


def test_a_users_tags_are_thinking() -> None:
    output = "<plan>The answer is (A).</plan>\nI can't tell."
    assert score(ask("letter"), output, opened=False).answer == "A"
    verdict = score(ask("letter"), output, opened=False, tags=parsed(["<plan>,</plan>"]))
    assert verdict.place != "answer"


def test_released_thinking_that_is_cut(shared_data: Path) -> None:
    """The paper's outputs cut in their thinking: behind the word "answer", and anywhere but where it ends anyway."""
    rng, cuts, read = random.Random(0), 0, 0
    for folder, name in FOLDERS.items():
        questions = benchmarks.load(name, str(shared_data / "benchmarks" / f"{name}.jsonl"))
        for trace in artifacts.read_jsonl(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"):
            thought, close, _ = trace["output"].rpartition("</think>")
            last = len(thought) - 100
            if trace["dataset"] != folder or last < 300 or not close:
                continue
            said = [match.end() + rng.randrange(60) for match in re.finditer("answer", thought)]
            said = [end for end in said if end < last]
            for end in [*rng.sample(said, min(3, len(said))), *(rng.randrange(100, last) for _ in range(3))]:
                cuts += 1
                read += score(questions[trace["index"]], thought[:end]).outcome != "none"
    assert cuts > 250
    assert read / cuts < 0.01, f"{read} of {cuts}"


#: Around the thinking of a released output: other models' tags.
OTHERS = [
    "<thinking>{}</thinking>{}",
    "{}</seed:think>{}",
    "[THINK]{}[/THINK]{}",
    "analysis{}assistantfinal{}",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
]


@pytest.mark.parametrize("form", OTHERS)
def test_released_outputs_in_other_tags(form: str, shared_data: Path) -> None:
    """A verdict doesn't depend on the tags."""
    for folder, name in FOLDERS.items():
        questions = benchmarks.load(name, str(shared_data / "benchmarks" / f"{name}.jsonl"))
        for trace in artifacts.read_jsonl(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"):
            thought, close, said = trace["output"].rpartition("</think>")
            if trace["dataset"] == folder and close:
                question = questions[trace["index"]]
                verdict = score(question, form.format(thought, said), finished=True)
                assert verdict == score(question, trace["output"], finished=True)
