"""A SentencePiece tokenizer as GGUF has it: pieces with scores, from tokenizer.json, which has merges instead.

llama.cpp joins the two neighbours whose piece has the highest score, until no two neighbours are a piece. Merges say
the same where they were made from scores: every way to split a piece is a merge, and those of one piece follow one
another. Then a piece's score is less by one than that of the piece whose merges come before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import gguf

_SPACE: Final = "▁"
_BYTES: Final = tuple(f"<0x{value:02X}>" for value in range(256))
_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
#: What Gemma's has after its spaces were replaced: it finds none.
_IDLE: Final = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def is_sentencepiece(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json has pieces, and bytes for what is none."""
    return data["model"].get("type") == "BPE" and bool(data["model"].get("byte_fallback"))


def space_prefix(data: Mapping[str, Any]) -> bool | None:
    """Whether a text and what follows a special token gets a space in front; None where llama.cpp can't do it so."""
    normalizer, before = data.get("normalizer"), data.get("pre_tokenizer")
    steps = normalizer["normalizers"] if normalizer and normalizer.get("type") == "Sequence" else [normalizer]
    if steps == [{"type": "Prepend", "prepend": _SPACE}, _SPACES] and before is None:
        return True
    if steps == [_SPACES] and before in (None, _IDLE):
        return False
    if steps == [None] and before and before.get("type") == "Metaspace":
        plain = before.get("replacement") == _SPACE and before.get("split") is False
        return {"always": True, "never": False}.get(before.get("prepend_scheme")) if plain else None
    return None


def problem(data: Mapping[str, Any]) -> str | None:
    """Why llama.cpp would make other tokens of some text than this tokenizer.json, or None."""
    model, added = data["model"], data.get("added_tokens", [])
    if space_prefix(data) is None:
        return "normalizer, pre_tokenizer: spaces are treated in no way that llama.cpp knows"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            return f"model.{key}: llama.cpp has no such thing for pieces"
    if not all(byte in model["vocab"] for byte in _BYTES):
        return "model.vocab: not all bytes are tokens"
    for token in added:
        for key in ("normalized", "lstrip", "rstrip", "single_word"):
            if token.get(key):
                return f"added_tokens: {token['content']}: {key}: llama.cpp looks for it in the text as it is"
    return _merges_problem(model["vocab"], _merges(model), {token["content"] for token in added})


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in pairs]


def _merges_problem(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], added: set[str]) -> str | None:
    known = set(merges)
    for piece in vocabulary:
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            # A single character stands for itself, piece or not.
            joined = all(len(part) == 1 or part in vocabulary for part in pair)
            if joined and pair not in known and piece not in added:
                return f"model.merges: {pair[0]} {pair[1]} is none, but llama.cpp would join them to {piece}"
    end, open_ = -1, ""
    spans: dict[str, tuple[int, int]] = {}
    for place, (first, second) in enumerate(merges):
        spans[first + second] = (spans.get(first + second, (place, 0))[0], place)
    for piece, (start, last) in spans.items():
        # Runs of one character grow from the left whatever their order.
        if start < end and (len(set(piece)) > 1 or len(set(open_)) > 1):
            return f"model.merges: those of {open_} and {piece} are mixed: no scores put them in this order"
        if last > end:
            end, open_ = last, piece
    return None


def scores(data: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Of each token: 0 for the piece that is joined first, one less for the next; lowest for what is never joined."""
    ranks: dict[str, int] = {}
    for first, second in _merges(data["model"]):
        ranks.setdefault(first + second, len(ranks))
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def own_types(data: Mapping[str, Any]) -> dict[str, gguf.TokenType]:
    """Tokens whose type is another one than with byte-level BPE."""
    # llama.cpp looks for added tokens before it replaces spaces: Gemma's runs of them are found by merges.
    joined = {token["content"] for token in data.get("added_tokens", []) if _SPACE in token["content"]}
    return {
        data["model"].get("unk_token"): gguf.TokenType.UNKNOWN,
        **dict.fromkeys(_BYTES, gguf.TokenType.BYTE),
        **dict.fromkeys(joined, gguf.TokenType.NORMAL),
    }
