"""SentencePiece tokenizers in GGUF files: llama.cpp makes the same tokens of any text, or the file is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pieces
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llamacpp import Model as LlamaModel
from llamacpp import needs_llamacpp, opened
from transformers import AutoConfig, PreTrainedTokenizerFast

from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf import sentencepiece, tokenizer
from mixprec.checkpoint.gguf.writer import FILE
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan

#: Words that the tokenizers know, what they have only bytes for, spaces and line breaks, special and added tokens.
_KNOWN = ("apples", "pear", " are", "ing", " ", "  ", "\n", "\n\n", "\t", "é", "漢", "🦙", "…", "<s>", "</s>", "<0x0A>")
TEXTS = st.lists(
    st.sampled_from(_KNOWN) | st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=8), max_size=12
).map("".join)
KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "prefix": pieces.tokenizer,
    "plain": lambda: pieces.tokenizer(False),
    "added": lambda: pieces.tokenizer(False, 384, "\n\n", "\n\n\n", "<table>"),
}


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PreTrainedTokenizerFast, LlamaModel]]:
    """A tokenizer in transformers, and in llama.cpp as our file has it."""
    folder = tmp_path_factory.mktemp("pieces")
    tiny.build("llama", hidden_size=64, intermediate_size=64).model.save_pretrained(folder / "source")
    KINDS[request.param]().save_pretrained(folder / "source")
    config = load_config(str(folder / "source"))
    plan = build_plan(PlanSpec(default="keep"), decoder_of(config), str(folder / "source"), "rtn")
    compress(Model(folder / "source"), plan, folder / "out", format=checkpoint_format("gguf"))
    with opened(folder / "out" / FILE) as other:
        yield Model(folder / "out").load().tokenizer, other


@needs_llamacpp
def test_the_same_tokens_of_any_text(both: tuple[PreTrainedTokenizerFast, LlamaModel]) -> None:
    words, other = both
    seen: set[str] = set()

    # On a busy machine drawing texts is slow, which is no fault of what is tested.
    @settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(TEXTS)
    def same(text: str) -> None:
        expected = words(text)["input_ids"]
        assert other.encode(text, special=True) == expected
        seen.update(words.convert_ids_to_tokens(expected))

    same()
    assert len(seen & set(pieces.BYTES)) > 50  # what no piece holds
    assert len([token for token in seen if len(token) > 2]) > 100


def test_in_the_file(tmp_path: Path) -> None:
    pieces.tokenizer(False, 384, "<table>", "▁▁▁▁▁", "<image>").save_pretrained(tmp_path)
    config = AutoConfig.for_model("llama", vocab_size=383)
    writer = gguf.GGUFWriter(tmp_path / "out.gguf", "llama")
    tokenizer.add(writer, tmp_path, config, ())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "out.gguf").fields.items()}
    tokens, types, scores = (found[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "scores"))
    kind = dict(zip(tokens, types, strict=True))
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert found["tokenizer.ggml.unknown_token_id"] == 0
    assert (kind["<unk>"], kind["</s>"], kind["<0xFF>"], kind["e"]) == (2, 3, 6, 1)
    assert (kind["<table>"], kind["▁▁▁▁▁"]) == (4, 1)
    assert len(tokens) == 383 and "<image>" not in tokens  # the embedding has no row for it
    joined = [score for token, score in zip(tokens, scores, strict=True) if token in ("▁a", "re", "▁are")]
    assert joined == sorted(joined, reverse=True) and len(set(joined)) == 3
    assert "tokenizer.ggml.merges" not in found


def described() -> dict[str, Any]:
    return dict(json.loads(pieces.tokenizer().backend_tokenizer.to_str()))


def _several(data: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """All merges, and those of the first piece that has several and more than one kind of character."""
    merges = data["model"]["merges"]
    by_piece: dict[str, list[list[str]]] = {}
    for pair in merges:
        by_piece.setdefault("".join(pair), []).append(pair)
    return merges, next(found for piece, found in by_piece.items() if len(found) > 1 and len(set(piece)) > 1)


def _less_merges(data: dict[str, Any]) -> None:
    merges, several = _several(data)
    merges.remove(several[-1])


def _mixed(data: dict[str, Any]) -> None:
    merges, several = _several(data)
    merges.remove(several[-1])
    merges.append(several[-1])


def _metaspace(scheme: str, split: bool) -> Callable[[dict[str, Any]], None]:
    steps = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return lambda data: data.update(normalizer=None, pre_tokenizer=steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_less_merges, "llama.cpp would join them to"),
        (_mixed, "are mixed: no scores put them in this order"),
        (_metaspace("first", False), "spaces are treated in no way"),
        (_metaspace("always", True), "spaces are treated in no way"),
        (lambda data: data.update(normalizer={"type": "NFC"}), "spaces are treated in no way"),
        (lambda data: data["model"].update(ignore_merges=True), "model.ignore_merges"),
        (lambda data: data["model"]["vocab"].pop("<0xC3>"), "not all bytes are tokens"),
        (lambda data: data["added_tokens"][1].update(normalized=True), "added_tokens: <s>: normalized"),
    ],
)
def test_what_llama_cpp_would_read_otherwise(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    data = described()
    assert sentencepiece.problem(data) is None
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match=f"tokenizer.json: .*{message}.*write dense"):
        tokenizer.read(tmp_path)


@pytest.mark.parametrize(("scheme", "prefix"), [("always", True), ("never", False)])
def test_spaces_as_transformers_writes_them(scheme: str, prefix: bool) -> None:
    data = described()
    _metaspace(scheme, False)(data)
    assert sentencepiece.problem(data) is None
    assert sentencepiece.space_prefix(data) is prefix
