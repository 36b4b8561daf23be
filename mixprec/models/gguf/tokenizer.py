"""What transformers leaves out when it reads a GGUF file's tokenizer: whether BOS goes in front where the file doesn't
say, whether a space does, that Llama 3 keeps pieces that are tokens, and chat templates that have names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gguf
from tokenizers import decoders, pre_tokenizers
from transformers import AutoTokenizer

from mixprec.core.errors import UserError
from mixprec.models.encoding import Encoder

#: Ways to split text for which llama.cpp keeps pieces that are tokens, whatever the merges, and puts BOS in front
#: unless the file says otherwise (src/llama-vocab.cpp).
_LLAMA3: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral"})
#: Ways to split text that transformers' default, GPT-2's regular expression, agrees with. SmolLM splits digits off too,
#: but its merges have none.
_GPT2: Final = frozenset({"gpt-2", "smollm"})
_SPACE: Final = "▁"
_PROBE: Final = "A word,  (two) don't: 1234.5\n\tÉté 数"


def complete(tokenizer: Any, reader: gguf.GGUFReader, path: Path) -> None:
    """Give ``tokenizer``, as transformers made it of the file ``path``, what else the file says.

    Raises UserError where transformers would split text in another way than the file says.
    """
    keys = gguf.Keys.Tokenizer
    model, pre = _said(reader, keys.MODEL), _said(reader, keys.PRE)
    core = tokenizer.backend_tokenizer
    steps = str(core.pre_tokenizer)
    if model == "gpt2" and ("ByteLevel" not in steps or ("Split" not in steps and pre not in _GPT2)):
        raise UserError(
            f"{path}: how its tokenizer splits text ({keys.PRE}: {pre}) is not read from GGUF files; give the original "
            "checkpoint"
        )
    if model == "gpt2" and pre in _LLAMA3:
        if _said(reader, keys.ADD_BOS) is None:
            tokenizer.add_bos_token = True
        merging = core.model
        merging.ignore_merges = True
        core.model = merging
    if model == "llama" and _said(reader, keys.ADD_PREFIX) is False:
        core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False)
        core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    names = _said(reader, keys.CHAT_TEMPLATES) or []
    named = {name: _said(reader, keys.CHAT_TEMPLATE_N.format(name=name)) for name in names}
    if named:
        default = {"default": tokenizer.chat_template} if tokenizer.chat_template else {}
        tokenizer.chat_template = default | {name: text for name, text in named.items() if text is not None}


def save(tokenizer: Any, folder: Path, path: Path) -> None:
    """Write ``tokenizer``, which is that of the file ``path``, into ``folder``.

    Raises UserError where transformers makes other tokens when it reads it back, as the kind that its architecture has.
    """
    tokenizer.save_pretrained(folder)
    before, after = (
        _tokens(each) for each in (tokenizer, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    )
    if before is None or before != after:
        raise UserError(
            f"{path}: its tokenizer is of another kind than transformers has for this architecture, and would make "
            "other tokens; give the original checkpoint"
        )


def _tokens(tokenizer: Any) -> list[int] | None:
    """Ids of a text that tokenizers of different kinds read differently; None where one can't read it."""
    try:
        return Encoder(tokenizer, rows=len(tokenizer)).piece(_PROBE).ids
    except Exception:  # of the tokenizers package, for characters that no token has
        return None


def _said(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
