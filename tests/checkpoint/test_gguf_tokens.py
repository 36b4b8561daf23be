"""llama.cpp, our encoder and the folder that a GGUF file is converted to make the same tokens of a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pieces
import pytest
import tiny
import torch
from llamacpp import needs_llamacpp, opened
from plan_made import WIDE, plan_for
from tokenizers import Regex, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf.tokenizer import _LLAMA3
from mixprec.compress import stream
from mixprec.core.errors import UserError
from mixprec.models.model import Model

TEXT = "Six apples and 1234 pears."


def template(single: str) -> Any:
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])


def words(post: Any = None, llama3: bool = False) -> PreTrainedTokenizerFast:
    core = tiny.tokenizer(bos=False).backend_tokenizer
    if llama3:
        data = json.loads(core.to_str())
        data["model"] |= {"ignore_merges": True, "merges": data["model"]["merges"][:20]}  # longer tokens go without
        core = type(core).from_str(json.dumps(data))
        split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    if post is not None:
        core.post_processor = post
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def written(folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str = "llama", **settings: Any) -> Path:
    """A GGUF file of a tiny model with this tokenizer; its source lies in ``folder``/source."""
    source = folder / "source"
    shape = WIDE | ({"query_pre_attn_scalar": WIDE["head_dim"]} if kind == "gemma3_text" else {})
    tiny.build(kind, **shape).model.to(torch.bfloat16).save_pretrained(source)
    tokenizer.save_pretrained(source)
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    stream.compress(Model(source), plan_for(source, "w4g32"), folder / "out", format=checkpoint_format("gguf"))
    return Path(shutil.copy(folder / "out" / "model.gguf", folder / "alone.gguf"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path / "cache"))


@needs_llamacpp
@pytest.mark.parametrize(
    ("tokenizer", "settings"),
    [
        (words(), {}),
        (words(template("<s> $A")), {}),
        (words(template("<s> $A </s>")), {}),  # EOS behind a prompt would end it
        (words(processors.RobertaProcessing(("</s>", 1), ("<s>", 0))), {}),
        (words(), {"add_bos_token": True}),
        (words(template("<s> $A")), {"add_bos_token": False}),
        (pieces.tokenizer(True), {}),
        (pieces.tokenizer(False), {}),
    ],
    ids=["none", "bos", "bos and eos", "roberta", "declared", "declared none", "space in front", "no space"],
)
def test_all_readers_make_the_same_tokens(tmp_path: Path, tokenizer: Any, settings: dict[str, Any]) -> None:
    alone = written(tmp_path, tokenizer, **settings)
    ours = Model(tmp_path / "source").encoder
    beside, converted = (Model(path).encoder for path in (tmp_path / "out", alone))
    assert ours(TEXT).ids == beside(TEXT).ids == converted(TEXT).ids
    assert ours.head == beside.head == converted.head
    assert converted.decode(converted.own(TEXT).ids).strip() == TEXT
    with opened(alone) as other:
        assert other.encode(TEXT, special=True) == ours(TEXT).ids


@needs_llamacpp
@pytest.mark.parametrize("llama3", [False, True])
def test_files_that_dont_say_whether_bos_goes_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama3: bool
) -> None:
    """Files of Llama 3 from before 2025 don't, and llama.cpp knows it by the way that text is split."""
    monkeypatch.setattr(gguf.GGUFWriter, "add_add_bos_token", lambda *_: None)
    alone = written(tmp_path, words(template("<s> $A"), llama3))
    assert "tokenizer.ggml.add_bos_token" not in gguf.GGUFReader(alone).fields
    with opened(alone) as other:
        assert Model(alone).encoder(TEXT).ids == other.encode(TEXT, special=True)
    assert Model(alone).encoder.head == ((0,) if llama3 else ())


@pytest.mark.parametrize("pre", ["deepseek-llm", "default", ""])
def test_ways_to_split_text_that_transformers_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str
) -> None:
    """It takes GPT-2's in their place, and says nothing."""
    add = gguf.GGUFWriter.add_tokenizer_pre
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda self, _: add(self, pre) if pre else None)
    alone = written(tmp_path, words())
    with pytest.raises(
        UserError, match=r"alone\.gguf: how its tokenizer splits text \(.*\) is not read from GGUF files"
    ):
        _ = Model(alone).encoder


def test_a_tokenizer_that_transformers_reads_back_as_another(tmp_path: Path) -> None:
    """It takes Gemma's class for Gemma's architecture, whatever the file has."""
    alone = written(tmp_path, words(), "gemma3_text")
    with pytest.raises(
        UserError, match=r"alone\.gguf: its tokenizer is of another kind than transformers has for this"
    ):
        _ = Model(alone).encoder


def test_two_tokens_in_front_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"every text begins with 2 tokens, llama\.cpp puts one in front; write dense"):
        written(tmp_path, words(template("</s> <s> $A")))
    assert not (tmp_path / "out").exists()
