"""A SentencePiece tokenizer as transformers makes it from scores: all ways to split a piece are merges, by score."""

from __future__ import annotations

from typing import Any

from tiny import TEXT, TRACES
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))


def tokenizer(prefix: bool = True, size: int = 384, *added: str) -> PreTrainedTokenizerFast:
    """``prefix``: as Llama 2's, which puts a space in front; else as Gemma's, with ``added`` tokens found first."""
    core = Tokenizer(models.BPE(**_pieces(size - len(added)), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    if prefix:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        core.normalizer = spaces
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    words.add_tokens([AddedToken(text, normalized=False) for text in added])
    return words


def _pieces(size: int) -> dict[str, Any]:
    """Vocabulary and merges of so many tokens: the special ones, bytes, characters, and pieces by falling score."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    words = trainers.BpeTrainer(vocab_size=size - len(SPECIAL) - len(BYTES), show_progress=False)
    texts = [TEXT, *(trace["output"] for trace in TRACES), "\n\n\n  \t" * 50]
    trained.train_from_iterator(texts, words)
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *BYTES, *pieces])}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return {"vocab": vocabulary, "merges": merges}
