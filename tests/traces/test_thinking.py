"""Thinking and answer told apart: the tags of many models, and outputs that use them badly."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.traces import thinking
from mixprec.traces.thinking import TAGS, opening, parsed, parts, reasoning

HARMONY = "<|start|>assistant<|channel|>final<|message|>"
#: Thinking that says 12 and an answer that says 25, as models write them.
MODELS = {
    "think": "<think>\nIt is 12.\n</think>\n\n{a}",
    "the template opened it": "It is 12.\n</think>\n\n{a}",
    "capitals": "<Think>It is 12.</THINK>{a}",
    "thinking": "<thinking>It is 12.</thinking>\n{a}",
    "thought": "<thought>It is 12.</thought>\n{a}",
    "reasoning": "<reasoning>It is 12.</reasoning>\n{a}",
    "reason": "<reason>It is 12.</reason>{a}",
    "scratchpad": "<scratchpad>It is 12.</scratchpad>{a}",
    "seed": "<seed:think>It is 12.</seed:think>{a}",
    "seed, opened by the template": "It is 12.</seed:think>{a}",
    "magistral": "[THINK]It is 12.[/THINK]{a}",
    "kimi": "◁think▷It is 12.◁/think▷{a}",
    "kimi k3": "<|open|>think<|sep|>It is 12.<|close|>think<|sep|><|open|>response<|sep|>{a}",
    "cohere": "<|START_THINKING|>It is 12.<|END_THINKING|><|START_RESPONSE|>{a}<|END_RESPONSE|>",
    "sky-t1": "<|begin_of_thought|>It is 12.<|end_of_thought|>\n\n<|begin_of_solution|>{a}<|end_of_solution|>",
    "minicpm": "<|thought_start|>It is 12.<|thought_end|>{a}",
    "gemma": "<|channel>thought\nIt is 12.<channel|>{a}",
    "granite": "Here is my thought process: It is 12. Here is my response: {a}",
    "harmony": "<|channel|>analysis<|message|>It is 12.<|end|>" + HARMONY + "{a}<|return|>",
    "harmony with a tool": "<|channel|>analysis<|message|>Run it.<|end|><|start|>assistant<|channel|>commentary "
    "to=functions.run <|constrain|>json<|message|>{{}}<|call|>" + HARMONY + "{a}",
    "harmony, opened by the template": "It is 12.<|end|>" + HARMONY + "{a}",
    "harmony answers in JSON": "<|channel|>analysis<|message|>12<|end|><|start|>assistant<|channel|>final "
    "<|constrain|>json<|message|>{a}",
    "harmony without its tokens": "analysisIt is 12.assistantfinal{a}",
    "harmony without its tokens, with a tool": "analysisRun it.assistantcommentary to=functions.run json12"
    "assistantanalysisIt is 12.assistantfinal{a}",
    "harmony, its channel opened by the template": "analysis<|message|>It is 12.<|end|>" + HARMONY + "{a}",
    "twice": "<think>It is 12.</think>\nSo 13.\n<think>No.</think>\n{a}",
    "nested": "<think>It is <think>12.</think> Or 13.</think>{a}",
    "nothing behind the last": "<think>It is 12.</think>{a}<think>Yes.</think>\n",
    "opened again, and cut": "<think>It is 12.</think>{a}<think>No, it is 1",
    "another tag is spoken of": "<think>They want <reasoning> and </reasoning>, 12.</think>{a}",
    "spoken of where the template opened": "They want <reasoning> here, 12.</think>{a}",
    "quoted": "<think>I close with `</think>` at 12, or '</think>'.</think>{a}",
}


@pytest.mark.parametrize("text", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("opened", [True, False])
def test_what_is_thought_is_no_answer(text: str, opened: bool) -> None:
    found = parts(text.format(a="It is 25."), opened)
    assert found.state == "closed"
    bare = re.sub(r"<\|\w+\|>", "", found.answer).strip()
    assert bare == "It is 25.", found


OPEN = [
    "<think>It is 12",
    "<think>It is 12.</reasoning> So 13",
    "[THINK]It is 12",
    "<|channel|>analysis<|message|>It is 12",
    "<|channel|>analysis<|message|>It is 12.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait",
    "analysisIt is 12. Wait",
    "Here is my thought process: it is 12",
    "<think>It is 12.</think>\n\n<think>Wait, it is",
]


@pytest.mark.parametrize("output", OPEN)
def test_a_thinking_without_its_end(output: str) -> None:
    for opened in (True, False):
        found = parts(output, opened)
        assert (found.state, found.answer) == ("open", output)
        assert found.tag is not None
    assert parts("It is 12.", opened=True) == thinking.Thought("open", "", "It is 12.", None)


@pytest.mark.parametrize(
    "output",
    [
        "It is 25.",
        "Analysis: it is 25.",
        "analysis of the premises gives 25",
        "The analysis says 25.",
        "Write `<think>` in front.",
        "Here is my response: 25",
        "a < b and b > think",
        "",
    ],
)
def test_texts_without_a_thinking(output: str) -> None:
    assert parts(output) == thinking.Thought("absent", "", output, None)


def test_tags_in_code_of_an_answer() -> None:
    code = "\nWrap it:\n```xml\n<think>\n</think>\n```\nIt is 25."
    assert parts("12</think>" + code).answer == code
    # A fence that a thinking leaves open doesn't hide its end.
    assert parts("```py\nx = 12\n</think>\n```py\nx\n```\n25").answer == "\n```py\nx\n```\n25"


def test_a_users_tags() -> None:
    tags = parsed(["<plan>, </plan>", "§§,¶¶"])
    assert tags[2:] == TAGS
    found = parts("<plan>It is 12.</plan>It is 25.", tags=tags)
    assert (found.state, found.answer, found.tag and found.tag.name) == ("closed", "It is 25.", "<plan>")
    assert parts("§§12.+¶¶25", tags=tags).answer == "25"
    assert parts("<plan>It is 12.</plan>It is 25.").state == "absent"


@pytest.mark.parametrize("text", ["<plan>", "<plan>,", ",</plan>", "a,b,c", "x,x", ""])
def test_tags_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"think_tags: .*'<plan>,</plan>'"):
        parsed([text])


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("2+2?\n<think>\n", "<think>"),
        ("<user>2+2?<assistant>[THINK]", "[THINK]"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>analysis<|message|>"),
        ("2+2?\n<think>\n\n</think>\n\n", None),
        ("2+2?", None),
    ],
)
def test_prompts_that_open_a_thinking(prompt: str, tag: str | None) -> None:
    assert opening(prompt) == tag


def test_where_the_reasoning_stands() -> None:
    for output in ("<think>\nHm.</think>\n4", "Hm.</think>\n4", "Hm.", "analysisHm.assistantfinal4", "[THINK]Hm."):
        assert output[slice(*reasoning(output))].strip() == "Hm."


def test_two_fields_of_a_server() -> None:
    found = parts(thinking.joined("It is 12.", "It is 25."))
    assert (found.state, found.answer.strip()) == ("closed", "It is 25.")
    # Without an answer the server was cut in the thinking, or found no end of it.
    assert parts(thinking.joined("It is 12.", "")).state == "open"


PIECES = [
    tag for output in MODELS.values() for tag in re.findall(r"[<\[◁][^<>\[\]◁▷]{0,20}[>\]▷]|assistantfinal", output)
]


@given(st.lists(st.sampled_from([*PIECES, "analysis", "`", "\n```\n", " it is 12 ", "\n"]), max_size=30).map("".join))
def test_any_mixture_has_parts(output: str) -> None:
    for opened in (True, False):
        found = parts(output, opened)
        assert found.answer in output
        assert found.state == "closed" or found.answer == output
        start, end = reasoning(output)
        assert 0 <= start <= end <= len(output)


@pytest.mark.parametrize("tag", TAGS, ids=lambda tag: tag.name)
def test_the_search_can_skip(tag: thinking.Tag) -> None:
    """Each expression begins with a literal character, so that text without it is passed over."""
    for source in (tag.open, tag.close):
        for alternative in re.split(r"\|(?=<|analysis|assistant)", source):
            assert re.match(r"\\[^\w]|[^\\(\[.*+?^$|]", alternative), source
