"""A tokenizer as GGUF has it: tokens, their types, merges or scores, special tokens, chat template.

Of byte-level BPE llama.cpp has no regular expressions of its own for splitting text but names for known ones: a
tokenizer.json whose splitting is none of these would be read wrongly, and is refused. SentencePiece: sentencepiece.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
from transformers import PretrainedConfig

from mixprec.checkpoint.gguf import sentencepiece
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models import modelfiles
from mixprec.models.tokenizer import load_encoder

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = _WORDS + r"\p{N}{1,3}" + _REST, _WORDS + r"\p{N}" + _REST
#: How text is split before merging, and whether whole words in the vocabulary go before merges -> llama.cpp's name.
_PRE_TOKENIZERS: Final[dict[tuple[tuple[str, ...], bool], str]] = {
    (("bytes",), False): "gpt-2",
    (("digits", "bytes"), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
}


def read(folder: Path) -> dict[str, Any]:
    """tokenizer.json of a checkpoint's folder.

    Raises UserError where there is none, or llama.cpp would split or merge text in another way.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder}: no tokenizer.json; a GGUF file holds the tokenizer")
    data = artifacts.read_object(path, finite=False)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise UserError(
            f"{path}: GGUF files are written with tokenizers that merge (BPE), this is another kind; "
            "write dense and use llama.cpp's own converter"
        )
    if not sentencepiece.is_sentencepiece(data):
        pre_tokenizer(data, path)
    elif problem := sentencepiece.problem(data):
        raise UserError(f"{path}: {problem}; write dense and use llama.cpp's own converter")
    return data


def pre_tokenizer(data: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for the way that text is split.

    Raises UserError for an unknown one.
    """
    steps = _steps(data.get("pre_tokenizer"))
    found = None if steps is None else _PRE_TOKENIZERS.get((steps, bool(data["model"].get("ignore_merges"))))
    if found is None:
        raise UserError(
            f"{path}: pre_tokenizer: splits text in none of the ways that mixprec knows llama.cpp's name of "
            f"({', '.join(_PRE_TOKENIZERS.values())}); write dense and use llama.cpp's own converter"
        )
    return found


def _steps(pre: Any) -> tuple[str, ...] | None:
    """The regular expressions in order; "bytes" for GPT-2's, "digits" for single digits; None for anything else."""
    if not isinstance(pre, dict):
        return None
    kind = pre.get("type")
    if kind == "Sequence":
        parts = [_steps(part) for part in pre.get("pretokenizers", [])]
        return None if None in parts else tuple(step for part in parts for step in part or ())
    if kind == "ByteLevel" and not pre.get("add_prefix_space"):
        return ("bytes",) if pre.get("use_regex", True) else ()
    if kind == "Digits" and pre.get("individual_digits"):
        return ("digits",)
    if kind == "Split" and pre.get("behavior") == "Isolated" and not pre.get("invert"):
        return (str(pre.get("pattern", {}).get("Regex")),)
    return None


def head_of(folder: Path, config: PretrainedConfig) -> tuple[int, ...]:
    """The token in front of every text, as mixprec encodes it; empty for models that have none.

    Raises UserError where there are several: llama.cpp knows BOS only.
    """
    head = load_encoder(str(folder), None, config.vocab_size).head
    if len(head) > 1:
        raise UserError(
            f"{folder}: every text begins with {len(head)} tokens, llama.cpp puts one in front; write dense"
        )
    return head


def add(writer: gguf.GGUFWriter, folder: Path, config: PretrainedConfig, head: Sequence[int]) -> None:
    """Put the tokenizer in ``folder`` into ``writer``; the vocabulary is filled up to the embedding's rows.

    ``head``: from ``head_of``. Raises UserError as ``read`` does.
    """
    data = read(folder)
    tokens, types = _vocabulary(data, config.vocab_size)
    if sentencepiece.is_sentencepiece(data):
        own = sentencepiece.own_types(data)
        types = [own.get(token, kind) for token, kind in zip(tokens, types, strict=True)]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(sentencepiece.scores(data, tokens))
        writer.add_add_space_prefix(bool(sentencepiece.space_prefix(data)))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer(data, folder / "tokenizer.json"))
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in types])
    settings = _json(folder / "tokenizer_config.json")
    ids = {token: number for number, token in enumerate(tokens)}
    found = {kind: _special(kind, settings, ids, config) for kind in _SPECIAL}
    numbers = {kind: number for kind, number in found.items() if number is not None}
    if head:
        numbers["bos"] = head[0]  # llama.cpp puts the token of this name in front
    for kind, number in numbers.items():
        getattr(writer, _SPECIAL[kind])(number)
    writer.add_add_bos_token(bool(head))
    writer.add_add_eos_token(False)  # a text that is continued has no end behind it
    _add_templates(writer, modelfiles.chat_templates(folder))


def _add_templates(writer: gguf.GGUFWriter, templates: Mapping[str, str]) -> None:
    """The default template under the name that every reader knows, others under names of their own."""
    names = {_LETTERS.sub("_", name): name for name in sorted(templates) if name != "default"}
    for written, name in names.items():
        writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=written), templates[name])
    if names:
        writer.add_array(gguf.Keys.Tokenizer.CHAT_TEMPLATES, list(names))
    if "default" in templates:
        writer.add_chat_template(templates["default"])


#: What names of templates in GGUF have not.
_LETTERS: Final = re.compile(r"[^A-Za-z0-9]")


_SPECIAL: Final = {
    "bos": "add_bos_token_id",
    "eos": "add_eos_token_id",
    "unk": "add_unk_token_id",
    "pad": "add_pad_token_id",
}


def _json(path: Path) -> dict[str, Any]:
    return artifacts.read_object(path, finite=False) if path.is_file() else {}


def _vocabulary(data: dict[str, Any], rows: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Tokens and their types, one for each of the embedding's ``rows``; added ones without a row are left out."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [gguf.TokenType.UNUSED] * rows
    for token, number in data["model"]["vocab"].items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for added in data.get("added_tokens", []):
        if added["id"] < rows:  # Gemma's tokenizer has one for images, of which its text models have no embedding
            tokens[added["id"]] = added["content"]
            types[added["id"]] = gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED
    return tokens, types


def _special(kind: str, settings: dict[str, Any], ids: dict[str, int], config: PretrainedConfig) -> int | None:
    """The number of a special token, by the tokenizer's configuration, else by the model's."""
    named = settings.get(f"{kind}_token")
    text = named.get("content") if isinstance(named, dict) else named
    if isinstance(text, str) and text in ids:
        return ids[text]
    number = getattr(config, f"{kind}_token_id", None)
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) and 0 <= number < len(ids) else None
