"""What a student learns from: which tokens count, token by token, and what of the traces is left out."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.distill import lessons
from mixprec.distill.lessons import IGNORED
from mixprec.distill.options import DistillOptions
from mixprec.models.encoding import Encoder
from mixprec.traces import procedural
from mixprec.traces.store import Trace

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)
ENCODER = tiny.encoder()


def options(**given: object) -> DistillOptions:
    return DistillOptions.model_validate({"validation": 1, **given})


def trace(number: int = 0, prompt: str | None = None, output: str = "So it is four.\n</think>\n\nFour.") -> Trace:
    return Trace(f"t{number}", "", f"Question {number}?\n<think>\n" if prompt is None else prompt, output)


def drawn(*traces: Trace, encoder: Encoder = ENCODER, limit: int = 1000, **given: object) -> lessons.Lessons:
    return lessons.draw(traces, encoder, options(**given), limit)


def every(found: lessons.Lessons) -> list[lessons.Lesson]:
    return sorted((*found.training, *found.validation), key=lambda one: one.id)


def split(one: lessons.Lesson) -> tuple[list[int], list[int]]:
    """The tokens that don't count, and those that do."""
    for token, label in zip(one.tokens, one.labels, strict=True):
        assert label in (token, IGNORED)
    pairs = list(zip(one.tokens, one.labels, strict=True))
    return [t for t, label in pairs if label == IGNORED], [t for t, label in pairs if label != IGNORED]


def test_only_what_the_teacher_wrote_counts_token_by_token() -> None:
    traces = [made.trace for made in procedural.traces(22, 5)]
    found = every(drawn(*traces, limit=5000))
    assert len(found) == 22
    for one, made in zip(found, sorted(traces, key=lambda each: each.id), strict=True):
        asked, written = split(one)
        assert ENCODER.decode(asked) == "<s>" + made.prompt
        assert ENCODER.decode(written) == made.output + "</s>"
        assert list(one.labels[: len(asked)]) == [IGNORED] * len(asked)  # one stretch, and the rest counts
        assert one.written == len(written)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_any_text_is_parted_where_the_output_begins(prompt: str, output: str) -> None:
    made = [trace(0, prompt, output), trace(1)]
    try:
        found = next(one for one in every(drawn(*made)) if one.id == "t0")
    except UserError:
        return  # nothing of it is a token of its own
    whole = ENCODER(prompt + output)
    for label, token, (start, end) in zip(found.labels, whole.ids, whole.offsets, strict=False):
        inside = start >= len(prompt) and end > start
        assert label == (token if inside else IGNORED) or token == found.tokens[0]
    assert found.tokens[: len(whole.ids)] == tuple(whole.ids)


def test_a_token_of_prompt_and_output_does_not_count_and_is_counted() -> None:
    joined = Trace("t0", "", "There were six ap", "ples left.")  # "apples" is one token
    found = drawn(joined, trace(1))
    one = every(found)[0]
    assert found.counts["straddling"] == 1
    assert ENCODER.decode(split(one)[1]) == " left.</s>"


def test_a_thinking_that_never_ended_gets_no_end_of_text() -> None:
    found = drawn(trace(0, output="And then I wondered"), trace(1), trace(2, "No tag?", "Just an answer."))
    ends = [one.tokens[-1] == ENCODER.eos for one in every(found)]
    assert ends == [False, True, True]
    assert found.counts["unfinished"] == 1


def test_an_end_of_text_that_is_there_is_not_repeated() -> None:
    one = every(drawn(trace(0, output="Four.</think> 4</s>"), trace(1)))[0]
    assert one.tokens.count(ENCODER.eos) == 1
    assert one.labels[-1] == ENCODER.eos


def test_longer_traces_are_refused_cut_or_dropped_and_counted() -> None:
    traces = [trace(0), trace(1), trace(2, output="So " * 200 + "</think> 4"), trace(3, "why " * 100, "Because.")]
    with pytest.raises(UserError, match=r"2 of 4 traces are longer than 60 tokens.*--longer drop.*--longer cut"):
        drawn(*traces, limit=60)
    dropped = drawn(*traces, limit=60, longer="drop")
    assert dropped.counts["dropped"] == 2
    assert [one.id for one in every(dropped)] == ["t0", "t1"]
    cut = drawn(*traces, limit=60, longer="cut")
    assert (cut.counts["cut"], cut.counts["nothing_left"]) == (2, 1)
    last = every(cut)[-1]
    assert (last.id, len(last.tokens), last.tokens[-1] == ENCODER.eos) == ("t2", 60, False)
    assert cut.told["cut"] == 2


def test_no_prompt_is_in_both_sets() -> None:
    traces = [
        Trace(f"{p}-{n}", "", f"Question {p}?\n<think>\n", f"Answer {n}.</think> {n}")
        for p in range(6)
        for n in range(3)
    ]
    found = drawn(*traces, validation=4)
    both = [{one.prompt for one in each} for each in (found.training, found.validation)]
    assert not both[0] & both[1]
    assert (len(found.training), len(found.validation)) == (12, 6)  # all three of two prompts
    assert drawn(*traces, validation=4).digest == found.digest
    others = [drawn(*traces, validation=4, seed=seed).validation for seed in range(5)]
    assert len({tuple(one.id for one in each) for each in others}) > 1


def test_too_few_traces_say_so() -> None:
    with pytest.raises(UserError, match=r"of 2 traces 2 can be used, on 2 prompts, .* lower --validation"):
        drawn(trace(0), trace(1), validation=2)


def test_prompts_go_into_the_chat_template_and_tags_behind_it() -> None:
    encoder = tiny.encoder()
    encoder.tokenizer.chat_template = TEMPLATE
    one = every(drawn(trace(0), trace(1), encoder=encoder, chat_template=True))[0]
    asked, written = split(one)
    assert encoder.decode(asked) == "<s><|user|>Question 0?<|bot|><think>\n"
    assert encoder.decode(written) == "So it is four.\n</think>\n\nFour.</s>"
    encoder.tokenizer.chat_template = TEMPLATE.replace("<|bot|>", "<|bot|><think>\n")  # it opens the thinking itself
    one = every(drawn(trace(0), trace(1), encoder=encoder, chat_template=True))[0]
    assert encoder.decode(split(one)[0]) == "<s><|user|>Question 0?<|bot|><think>\n"


def test_a_student_without_a_template_or_an_end_is_refused() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        drawn(trace(0), trace(1), chat_template=True)
    encoder = tiny.encoder()
    encoder.tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of text"):
        drawn(trace(0), trace(1), encoder=encoder)
