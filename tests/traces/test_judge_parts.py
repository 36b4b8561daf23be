"""A judge's parts without a server: pieces, what is read of answers, prompts, kept answers."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Finish, Generation, Sampling
from mixprec.traces import store, thinking
from mixprec.traces.annotate import LABELS
from mixprec.traces.judge import prompts
from mixprec.traces.judge.answers import Answers, asked
from mixprec.traces.judge.pieces import Found, Piece, cut, halves, joined
from mixprec.traces.judge.reading import Reading, read
from mixprec.traces.judge.spec import JudgeSpec

RECORDED = Path(__file__).with_name("data") / "smollm2_answers.jsonl"
TEXT = (
    "I need the sum of both. Two and two make four. Wait, that was the product. "
    "I recall that a sum is what adding gives. Say both are 3: then it is 6. I'm not sure of that at all."
)
SENTENCES = [
    ("initializing", "I need the sum of both."),
    ("deduction", "Two and two make four."),
    ("backtracking", "Wait, that was the product."),
    ("adding-knowledge", "I recall that a sum is what adding gives."),
    ("example-testing", "Say both are 3: then it is 6."),
    ("uncertainty-estimation", "I'm not sure of that at all."),
]


def tagged(sentences: list[tuple[str, str]]) -> str:
    return "\n".join(f'["{label}"] {text} ["end-section"]' for label, text in sentences)


def reading(answer: str, finish: Finish = "stop", text: str = TEXT) -> Reading:
    return read(answer, finish, text, Piece(0, len(text)))


def texts(found: Reading, text: str = TEXT) -> list[tuple[str, str]]:
    return [(each.behaviour.replace("_", "-"), text[each.start : each.end]) for each in found.found]


# Pieces

labelled = st.lists(st.tuples(st.sampled_from(sorted(LABELS)), st.integers(1, 12)), min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(labelled, st.integers(60, 400), st.sampled_from([" ", "\n\n", ""]))
def test_what_a_perfect_judge_says_of_pieces_is_whole_again(
    sections: list[tuple[str, int]], size: int, between: str
) -> None:
    """Every piece is annotated as the whole text would be: no section is lost, doubled or moved by the borders."""
    text, truth = "", []
    for number, (label, words) in enumerate(sections):
        said = f"{'wort ' * words}{number}。" if between == "" else f"{'word ' * words}{number}."
        truth.append(Found(LABELS[label], len(text), len(text) + len(said)))
        text += said + between
    pieces = cut(text, Piece(0, len(text)), size)
    assert all(first.start < second.start <= first.end < second.end for first, second in itertools.pairwise(pieces))
    assert all(piece.end - piece.start <= size for piece in pieces)
    inside = [
        [
            each._replace(start=max(each.start, piece.start), end=min(each.end, piece.end))
            for each in truth
            if each.start < piece.end and piece.start < each.end
        ]
        for piece in pieces
    ]
    whole = joined(text, pieces, inside)
    assert _characters(text, whole) == _characters(text, truth)
    assert all(first.end <= second.start for first, second in itertools.pairwise(whole))
    if all(each.end - each.start < size * 0.05 for each in truth):
        assert whole == truth


def _characters(text: str, found: list[Found]) -> dict[int, str]:
    return {at: each.behaviour for each in found for at in range(each.start, each.end) if not text[at].isspace()}


def test_pieces_end_where_sentences_do_and_are_alike() -> None:
    text = "This is a sentence of some length. " * 100
    pieces = cut(text, Piece(0, len(text)), 1000)
    assert all(text[piece.start : piece.end].startswith("This is") for piece in pieces)
    assert all(text[: piece.end].rstrip().endswith(".") for piece in pieces)
    sizes = [piece.end - piece.start for piece in pieces]
    assert len(pieces) == 4 and max(sizes) - min(sizes) < 100
    chinese = "我不确定这是否正确。" * 50
    assert all(chinese[piece.end - 1] == "。" for piece in cut(chinese, Piece(0, len(chinese)), 120))
    assert cut("  \n ", Piece(0, 4), 100) == []
    assert len(cut("x" * 1000, Piece(0, 1000), 300)) == 4  # neither sentences nor blanks
    assert [text[each.start] for each in halves(text, Piece(0, len(text)))] == ["T", "T"]


# Reading


def test_a_copy_is_read_as_it_is() -> None:
    found = reading(tagged(SENTENCES))
    assert texts(found) == SENTENCES
    assert (found.fault, found.mended, dict(found.skipped)) == (None, 0, {})


def test_what_fits_no_label_may_stay_outside() -> None:
    answer = f"Sure! Here it is:\n```\n{SENTENCES[0][1]} {SENTENCES[1][1]}\n{tagged(SENTENCES[2:])}\n```"
    found = reading(answer)
    assert texts(found) == SENTENCES[2:] and found.fault is None


def test_paraphrases_are_mended_between_their_neighbours() -> None:
    said = SENTENCES.copy()
    said[2] = ("backtracking", "Wait, that was *their* product.")
    said[3] = ("adding-knowledge", "I do recall a sum is what adding things gives.")
    found = reading(tagged(said))
    assert texts(found) == SENTENCES
    assert (found.fault, found.mended, dict(found.skipped)) == (None, 2, {})


def test_inventions_have_no_place() -> None:
    invented = ("backtracking", "Hold on, the question was about pears and plums from the start.")
    found = reading(tagged([*SENTENCES[:3], invented, *SENTENCES[3:]]))
    assert texts(found) == SENTENCES
    assert found.fault == "not_found" and found.skipped == {"not_found": 1}


@pytest.mark.parametrize(
    ("answer", "finish", "fault"),
    [
        ("I'm sorry, but I can't help with that.", "stop", "refused"),
        ("", "stop", "refused"),
        ("", "withheld", "refused"),
        (tagged(SENTENCES[:2]), "length", "truncated"),
        ("<think>\nThe text seems to be about sums, so", "length", "truncated"),
        (tagged(SENTENCES[:3]), "stop", "lost"),
        (tagged([("reflection", text) for _, text in SENTENCES]), "stop", "unknown_label"),
        (TEXT, "stop", "unlabelled"),
        (tagged([("deduction", "Necesito la suma de ambos. Dos y dos son cuatro.")]), "stop", "not_found"),
        (tagged([("推理", text) for _, text in SENTENCES]), "stop", "unknown_label"),
        (tagged([("think", "I need the sum of both.")]), "stop", "unknown_label"),
    ],
)
def test_faults(answer: str, finish: Finish, fault: str) -> None:
    found = reading(answer, finish)
    assert found.fault == fault
    assert fault in prompts.REMINDERS
    assert set(texts(found)) <= set(SENTENCES)  # what is used is true all the same


def test_a_trace_and_a_judge_that_go_in_circles_take_no_long_time() -> None:
    """Time grew with the product of both lengths: 26 seconds for these."""
    text, said = "Wait, let me check that again. " * 190, random.Random(0)
    words = ["wait", "chek", "agan", "so", "the", "smu", "Wait,"]
    sections = [("backtracking", " ".join(said.choices(words, k=8))) for _ in range(500)]
    begun = time.process_time()
    assert reading(tagged(sections), text=text).fault == "not_found"
    assert time.process_time() - begun < 4


def test_a_judge_that_goes_on_behind_the_end() -> None:
    assert reading(tagged(SENTENCES) + "\nText: And", "length").fault is None
    babble = tagged(SENTENCES) + '\n["deduction"] And so on, and so on. ["end-section"]' * 200
    found = reading(babble, "length")
    assert texts(found) == SENTENCES and found.fault == "not_found" and found.skipped == {"not_found": 200}


def test_sections_inside_of_sections() -> None:
    first, second, third = (text for _, text in SENTENCES[1:4])
    answer = f'["deduction"] {first} ["backtracking"] {second} ["end-section"] {third} ["end-section"]'
    text = f"{first} {second} {third}"
    found = reading(answer, text=text)
    assert found.fault == "nested" and found.skipped == {"nested": 1}
    assert texts(found, text) == [
        ("deduction", first),
        ("backtracking", second),
    ]  # the inner one, and what stands before


def test_a_judge_that_thinks_first() -> None:
    thought = '<think>\n["backtracking"] Two and two make four. ["end-section"] or not?\n</think>\n\n'
    assert texts(reading(thought + tagged(SENTENCES))) == SENTENCES


def test_labels_are_seen_through() -> None:
    said = [(f"{number}. {label.upper().replace('-', ' ')}", text) for number, (label, text) in enumerate(SENTENCES)]
    assert texts(reading(tagged(said))) == SENTENCES


@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(["stop", "length", "withheld"]))
def test_nothing_is_found_outside_of_the_text(answer: str, text: str, finish: Finish) -> None:
    for said in (answer, tagged([("deduction", answer), ("backtracking", text)])):
        found = read(said, finish, f"..{text}..", Piece(2, len(text) + 2)).found
        assert all(2 <= each.start < each.end <= len(text) + 2 for each in found)
        assert all(first.end <= second.start for first, second in itertools.pairwise(found))


def test_answers_that_a_very_small_model_gave() -> None:
    """SmolLM2-135M repeats the prompt, its example and itself: none of that becomes a span."""
    traces = {trace.id: trace for trace in store.load("bundled:attribution")}
    rows = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    faults, placed = [], []
    for row in rows:
        text, piece = traces[row["trace"]].output, Piece(row["start"], row["end"])
        found = read(row["answer"], row["finish"], text, piece)
        assert all(piece.start <= each.start < each.end <= piece.end for each in found.found)
        placed += [(each.behaviour, text[each.start : each.end]) for each in found.found]
        faults.append(found.fault)
    assert set(faults) == {"truncated", "unlabelled"} and len(rows) == 16
    assert [(behaviour, text[:40]) for behaviour, text in placed] == [
        ("uncertainty_estimation", "Let me think about which pairs do that. ")
    ]  # the only words of its own text that it put into a section


def test_gpt_4o_s_annotations_as_answers(shared_data: Path) -> None:
    """The aligned rule alone doesn't find 197 of a real annotator's sections; most of these are mended."""
    traces = [
        trace
        for trace in store.load(str(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"))
        if len(trace.output) <= 40_000
    ]
    found = [read(trace.annotated or "", "stop", trace.output, Piece(0, len(trace.output))) for trace in traces]
    lost, mended = sum(each.skipped["not_found"] for each in found), sum(each.mended for each in found)
    assert mended > 2 * lost > 0
    assert [trace.id for trace, each in zip(traces, found, strict=True) if each.fault == "refused"]


# Prompts


def test_our_prompt_names_the_labels_and_has_one_place() -> None:
    ours = prompts.own()
    assert all(f"{label}:" in ours.template for label in LABELS) and '["end-section"]' in ours.template
    assert ours.template.count(prompts.PLACE) == 1 and "think" not in ours.template
    assert ours.filled("x {text} y").endswith("x {text} y")
    again = ours.filled("x", "truncated")
    assert prompts.REMINDERS["truncated"] in again.partition("\n\n")[0] and again.endswith(ours.filled("x"))


def test_the_words_of_a_version_stay() -> None:
    words = prompts.own().sha256, *prompts.REMINDERS.values()
    known = {1: "ac9dad37dfc62a8759e53c563061ad185bfbbb35ff7181036f16fa78824cb462"}
    assert known.get(prompts.VERSION) == hashlib.sha256("\n".join(words).encode()).hexdigest(), (
        "the prompt's words changed: raise VERSION and note the digest here"
    )


def test_prompts_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(prompts.own().template + "\n", encoding="utf-8")
    assert prompts.load(str(path)) == prompts.own() == prompts.load(None)
    path.write_text("Label {text}, {now}", encoding="utf-8")
    mine = prompts.load(str(path))
    assert mine.filled("a") == "Label a, {now}" and mine.version is None
    for wrong in ("Label this", "{text} {text}"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(UserError, match=r"prompt\.txt: {text} stands there [02] times.*--show-prompt"):
            prompts.load(str(path))
    with pytest.raises(UserError, match="can't be read"):
        prompts.load(str(tmp_path / "gone.txt"))


# Kept answers


def test_answers_stay_and_half_a_line_goes(tmp_path: Path) -> None:
    path, sampling = tmp_path / "a.jsonl", Sampling(10, 0.1, 1.0)
    keys = [asked("m", f"message {number}", sampling, 0) for number in range(2)]
    assert len({*keys, asked("n", "message 0", sampling, 0), asked("m", "message 0", sampling, 1)}) == 4
    kept = Answers(path)
    for key in keys:
        kept.add(key, Generation("k", f"said\u2028{key}", "stop", 3, None, "p"), {"judge": "m"})
    with path.open("ab") as file:
        file.write('{"asked": "x", "answer": "é'.encode()[:-1])
    again = Answers(path)
    assert [again.get(key) for key in keys] == [kept.get(key) for key in keys] and again.get("x") is None
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"answer": "other"}, "was edited or damaged"),
        (lambda row: row | {"tokens": "many"}, "key 'tokens' is missing or wrong"),
        (lambda row: row | {"finish": "maybe"}, "key 'finish' is missing or wrong"),
        (lambda row: {"id": "a", "prompt": "p", "output": "o"}, "key 'asked' is missing.*give another file"),
    ],
)
def test_other_lines_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "a.jsonl"
    Answers(path).add("k", Generation("k", "said", "stop", 3, 5, "p"), {})
    path.write_text(json.dumps(change(json.loads(path.read_text()))) + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:1: {message}"):
        Answers(path)


def test_what_decides_and_what_does_not() -> None:
    spec = JudgeSpec(url="http://one/v1", model="m", price_in=2, price_out=8)
    other = spec.model_copy(update={"url": "http://two/v1", "concurrency": 1, "timeout": 1.0, "price_in": None})
    assert spec.deciding == other.deciding and "url" not in spec.deciding
    assert spec.cost(1_000_000, 500_000) == 6 and JudgeSpec(url="u", model="m").cost(1, 1) is None


def test_tags_of_thinking_are_not_asked_about() -> None:
    output = "<think>\nOkay. Wait, no.\n</think>\n\nWait, four."
    piece = Piece(*thinking.reasoning(output))
    (only,) = cut(output, piece, 4000)
    assert output[only.start : only.end] == "Okay. Wait, no."
