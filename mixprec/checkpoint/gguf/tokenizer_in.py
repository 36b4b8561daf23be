"""What transformers leaves out when it reads a GGUF file's tokenizer: whether BOS goes in front where the file doesn't
say, whether a space does, and chat templates that have names."""

from __future__ import annotations

from typing import Any, Final

import gguf
from tokenizers import decoders, pre_tokenizers

#: Ways to split text for which llama.cpp puts BOS in front unless the file says otherwise (src/llama-vocab.cpp).
_BOS_UNLESS_SAID: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral"})
_SPACE: Final = "▁"


def complete(tokenizer: Any, reader: gguf.GGUFReader) -> None:
    """Give ``tokenizer``, as transformers made it of a file, what else the file says."""
    keys = gguf.Keys.Tokenizer
    model, pre = _said(reader, keys.MODEL), _said(reader, keys.PRE)
    if _said(reader, keys.ADD_BOS) is None and model == "gpt2" and pre in _BOS_UNLESS_SAID:
        tokenizer.add_bos_token = True
    core = tokenizer.backend_tokenizer
    if model == "llama" and _said(reader, keys.ADD_PREFIX) is False:
        core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False)
        core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    names = _said(reader, keys.CHAT_TEMPLATES) or []
    named = {name: _said(reader, keys.CHAT_TEMPLATE_N.format(name=name)) for name in names}
    if named:
        default = {"default": tokenizer.chat_template} if tokenizer.chat_template else {}
        tokenizer.chat_template = default | {name: text for name, text in named.items() if text is not None}


def _said(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
