"""The sentence classifier: the random field against enumeration, the default on traces it hasn't seen, and training."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.traces import annotators, learned, procedural, spans, store
from mixprec.traces.learned import crf, modelfile, passages, training
from mixprec.traces.learned.classifier import LABELS
from mixprec.traces.learned.features import Features
from mixprec.traces.sentences import split
from mixprec.traces.spans import ALL_BEHAVIOURS
from mixprec.traces.store import Trace

RANDOM = np.random.default_rng(5)
WEIGHTS = crf.Weights(np.zeros((0, 3)), RANDOM.normal(size=(2, 3, 3)), RANDOM.normal(size=3))


def score(labels: tuple[int, ...], scores: np.ndarray, opens: np.ndarray) -> float:
    pairs = itertools.pairwise(labels)
    return float(
        WEIGHTS.first[labels[0]]
        + sum(scores[at, label] for at, label in enumerate(labels))
        + sum(WEIGHTS.pairs[int(opens[at]), a, b] for at, (a, b) in enumerate(pairs, 1))
    )


@pytest.mark.parametrize("length", [1, 2, 5])
def test_marginals_are_those_of_all_labellings(length: int) -> None:
    scores, opens = RANDOM.normal(size=(length, 3)), RANDOM.random(length) < 0.5
    labellings = list(itertools.product(range(3), repeat=length))
    weight = np.exp([score(labels, scores, opens) for labels in labellings])
    expected = [
        [weight[[y[at] == k for y in labellings]].sum() / weight.sum() for k in range(3)] for at in range(length)
    ]
    np.testing.assert_allclose(crf.marginals(scores, opens, WEIGHTS), expected, rtol=1e-10)


def test_the_loss_is_the_likelihood_and_the_slope_its_gradient() -> None:
    lengths = np.array([4, 1, 3])
    opens = np.array([True, False, True, False, True, True, False, False])
    labels = np.array([0, 2, 1, 1, 2, 0, 0, 1])
    weight = np.array([1.0, 0.5, 2.0])
    padded = crf._Padded(crf.Chains([[]] * 8, labels, opens, lengths, weight), 3)

    def unpack(flat: np.ndarray) -> tuple[np.ndarray, crf.Weights]:
        return flat[:24].reshape(8, 3), crf.Weights(np.zeros((0, 3)), flat[24:42].reshape(2, 3, 3), flat[42:])

    def loss(flat: np.ndarray) -> float:
        return padded.gradient(*unpack(flat))[0]

    def slope(flat: np.ndarray) -> np.ndarray:
        return np.concatenate([part.ravel() for part in padded.gradient(*unpack(flat))[1:]])

    flat = np.concatenate([RANDOM.normal(size=24), WEIGHTS.pairs.ravel(), WEIGHTS.first])
    expected = 0.0
    for begin, length, each in zip((0, 4, 5), lengths, weight, strict=True):
        part = slice(begin, begin + length)
        scores = flat[:24].reshape(8, 3)[part]
        total = np.log(sum(np.exp(score(y, scores, opens[part])) for y in itertools.product(range(3), repeat=length)))
        expected += each * (total - score(tuple(labels[part]), scores, opens[part]))
    assert loss(flat) == pytest.approx(expected, rel=1e-10)
    assert check_grad(loss, slope, flat) < 1e-5


def test_a_random_field_is_learned() -> None:
    """Label b follows a, and only features tell the first one."""
    rows, labels = [], []
    for number in range(40):
        first = number % 2
        rows += [[first], [2], [2]]
        labels += [first, 1 - first, first]
    chains = crf.Chains(rows, np.array(labels), np.zeros(120, bool), np.full(40, 3), np.ones(40))
    weights = crf.train(chains, 3, 2, penalty=0.01)
    scores = weights.emission[[1, 2, 2]]
    assert crf.marginals(scores, np.zeros(3, bool), weights).argmax(1).tolist() == [1, 0, 1]


def test_features_say_where_and_how_a_sentence_stands() -> None:
    features = Features()
    rows = features.rows("Ann sold 3 hats.", split("Okay. Ann Moor sold hats.\n\nWait, is x = 7?"))
    names = [{features.names[number] for number in row} for row in rows]
    assert {"#number 0", "okay", "^okay", "$okay ."} <= names[0]
    assert {"ann", "<name>", "sold", "<^okay", ">$?"} <= names[1]
    assert {"#opens True alone True", "@WAIT", "<n>", "x =", "#last"} <= names[2]
    known = Features(["okay", "#last"])
    assert known.rows("", split("Okay. Fine."))[1] == (1,)


def shares(traces: list[spans.AnnotatedTrace], found: list[spans.AnnotatedTrace]) -> dict[str, tuple[float, float]]:
    """Precision and recall in characters, by behaviour."""
    hits, said, true = (dict.fromkeys(ALL_BEHAVIOURS, 0) for _ in range(3))
    for expected, other in zip(traces, found, strict=True):
        truth = [""] * len(expected.trace.text)
        for span in expected.spans:
            truth[span.start : span.end] = [span.behaviour] * (span.end - span.start)
        for label in truth:
            true[label] = true.get(label, 0) + 1
        for span in other.spans:
            said[span.behaviour] += span.end - span.start
            hits[span.behaviour] += truth[span.start : span.end].count(span.behaviour)
    return {label: (hits[label] / max(said[label], 1), hits[label] / true[label]) for label in ALL_BEHAVIOURS}


def test_the_default_on_traces_that_it_has_not_seen() -> None:
    traces = [spans.char_spans(trace, "aligned") for trace in store.load(store.HELD_OUT)]
    found = shares(traces, [learned.annotate(each.trace, modelfile.shipped()) for each in traces])
    for behaviour, (precision, recall) in found.items():
        assert precision > 0.5 and recall > 0.4, (behaviour, precision, recall)  # it is trained for recall


def test_the_default_on_procedural_traces_of_another_seed() -> None:
    traces = [spans.char_spans(made.trace, "aligned") for made in procedural.traces(44, seed=99)]
    found = shares(traces, [learned.annotate(each.trace, modelfile.shipped()) for each in traces])
    assert min(min(each) for each in found.values()) > 0.8, found


def trace(output: str) -> Trace:
    return Trace("a", "", "What?\n<think>\n", output)


def test_one_span_a_sentence_of_the_reasoning_alone() -> None:
    output = "<think>\nOkay, so I need to find the sum. It is 4.\n\nWait, no, that's wrong.\n</think>\nThe answer is 5."
    found = learned.annotate(trace(output), modelfile.shipped())
    shown = [(span.behaviour, found.trace.text[span.start : span.end]) for span in found.spans]
    assert shown == [
        ("initializing", "Okay, so I need to find the sum."),
        ("deduction", "It is 4."),
        ("backtracking", "Wait, no, that's wrong."),
    ]
    assert found.skipped == {}


@pytest.mark.parametrize(
    ("output", "kept", "skipped"),
    [
        ("好的，我需要求和。\n答案是 4。\n</think>\n4", 0, {"other_script": 2}),
        ("Okay, so I need the sum.\n等等，不对。\nIt is 4.", 2, {"other_script": 1}),
        ("<think>\n\n</think>\n\nThe answer is 4.", 0, {"no_reasoning": 1}),
        ("---\n\\[\n= 7\n\\]", 4, {}),
    ],
)
def test_what_it_cannot_read_is_counted(output: str, kept: int, skipped: dict[str, int]) -> None:
    found = learned.annotate(trace(output), modelfile.shipped())
    assert (len(found.spans), found.skipped) == (kept, skipped)


def test_a_sentence_has_the_behaviour_of_most_of_it() -> None:
    text = "I wonder. It is four, and not five."
    shown = [spans.CharSpan("uncertainty_estimation", 14, 30), spans.CharSpan("deduction", 30, 49)]
    found = training.of_trace(spans.AnnotatedTrace(trace(text), shown))
    assert found.behaviours == ["uncertainty_estimation", "deduction"]


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    shipped = modelfile.shipped()
    modelfile.write(tmp_path / "a", shipped)
    again = modelfile.read(tmp_path / "a")
    assert again.names == list(shipped.names)
    assert all((one == other).all() for one, other in zip(again.weights, shipped.weights, strict=True))
    assert (tmp_path / "a").read_bytes() == modelfile.shipped_path().read_bytes()


def test_a_file_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfile, "VERSION", 0)
    modelfile.write(tmp_path / "old", modelfile.shipped())
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 0 of the classifier, known is 2"):
        modelfile.read(tmp_path / "old")


def test_passages_have_known_letters_and_every_behaviour() -> None:
    found = passages.load()
    assert {"math", "logic", "temporal", "multihop"} <= set(found)
    shown = {label for sequences in found.values() for each in sequences for label in each.behaviours}
    assert shown == set(LABELS)
    assert all(each.prompt and each.behaviours[0] == "initializing" for each in found["math"])
    with pytest.raises(ValueError, match="'z What': begin the line with one of i, d, k"):
        list(passages.parse(["? Why", "d So.", "z What"]))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on little."""
    shipped = training.given([])
    monkeypatch.setattr(training, "shipped", lambda: shipped + training.made(22, 0))


def peculiar(number: int) -> Trace:
    """An annotator who calls every question backtracking."""
    text = f"So it is {number}. Is it {number} times {number + 1}? Then we get {number * 7}. What about {number}?"
    annotated = "".join(
        f'["{"backtracking" if part.endswith("?") else "deduction"}"] {part} ["end-section"] '
        for part in (sentence.text for sentence in split(text))
    )
    return Trace(str(number), "", "Why?\n", text, annotated)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spanned", [False, True])
def test_it_learns_a_users_labels(tmp_path: Path, spanned: bool) -> None:
    path = tmp_path / "annotated.jsonl"
    traces = [peculiar(number) for number in range(30)]
    if spanned:
        spans.save_spans(path, (spans.char_spans(each, "aligned") for each in traces))
    else:
        keys = ("id", "prompt", "output", "annotated")
        artifacts.write_jsonl(path, ({key: getattr(each, key) for key in keys} for each in traces))
    taught = annotators.make("classifier", "paper", [str(path)])(replace(peculiar(77), annotated=None))
    assert [span.behaviour for span in taught.spans] == ["deduction", "backtracking"] * 2


def test_traces_without_annotations_teach_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bare.jsonl"
    artifacts.write_jsonl(path, [{"id": "a", "prompt": "b", "output": "c"}])
    with pytest.raises(UserError, match="trace 'a' has no annotation"):
        annotators.make("classifier", "paper", [str(path)])
    artifacts.write_jsonl(path, [{"id": "a", "prompt": "b", "output": "c", "annotated": "none"}])
    with pytest.raises(UserError, match="no trace has a span to learn from"):
        annotators.make("classifier", "paper", [str(path)])


@pytest.mark.slow
def test_the_default_is_what_its_script_makes() -> None:
    made = modelfile.rounded(training.train(training.shipped()))
    traces = [made_.trace for made_ in procedural.traces(33, seed=7)] + store.load("bundled:held_out")
    same = total = 0
    for each in traces:
        one, other = (learned.annotate(each, found).spans for found in (made, modelfile.shipped()))
        same += sum(a == b for a, b in zip(one, other, strict=True))
        total += len(one)
    assert same >= 0.995 * total
