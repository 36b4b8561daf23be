"""llama.cpp as a reader of our files: the library of the xllamacpp wheel through ctypes, token by token."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from mixprec.compress.ggml import library_path

needs_llamacpp = pytest.mark.skipif(library_path() is None, reason="xllamacpp is not installed: mixprec[llamacpp]")


class _Opaque(ctypes.Structure):
    """A structure whose fields we don't know, but for the first number; larger than any of llama.cpp's."""

    _fields_ = (("first", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 1020))


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Model:
    """A loaded GGUF file."""

    def __init__(self, library: ctypes.CDLL, context: int, model: int) -> None:
        self._library, self._context, self._model = library, context, model
        self._vocabulary = library.llama_model_get_vocab(ctypes.c_void_p(model))
        self.tokens = library.llama_vocab_n_tokens(ctypes.c_void_p(self._vocabulary))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Tokens of a text; ``special``: with those that the tokenizer puts around it."""
        raw = text.encode()
        out = (ctypes.c_int32 * (len(raw) + 16))()
        count = self._library.llama_tokenize(
            ctypes.c_void_p(self._vocabulary), raw, len(raw), out, len(out), special, True
        )
        assert count >= 0
        return list(out[:count])

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """(T, vocabulary): of the next token, after each."""
        rows = []
        for token in tokens:
            one = (ctypes.c_int32 * 1)(token)
            assert self._library.llama_decode(self._context, self._library.llama_batch_get_one(one, 1)) == 0
            pointer = self._library.llama_get_logits_ith(self._context, -1)
            rows.append(np.ctypeslib.as_array(pointer, (self.tokens,)).copy())
        return torch.from_numpy(np.stack(rows))


@contextmanager
def opened(path: Path) -> Iterator[Model]:
    """Load ``path`` into llama.cpp; a fresh context of 512 tokens."""
    where = library_path()
    assert where is not None
    library = ctypes.CDLL(str(where))
    library.llama_model_default_params.restype = _Opaque
    library.llama_context_default_params.restype = _Opaque
    library.llama_batch_get_one.restype = _Opaque
    library.llama_batch_get_one.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_decode.argtypes = [ctypes.c_void_p, _Opaque]
    library.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_tokenize.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
    ]  # fmt: skip
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab"):
        getattr(library, name).restype = ctypes.c_void_p
    silent = _SILENT(lambda *_: None)
    library.llama_log_set(silent, None)
    library.llama_backend_init()
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    assert model, f"llama.cpp doesn't load {path}"
    parameters = library.llama_context_default_params()
    parameters.first = 512
    context = library.llama_init_from_model(ctypes.c_void_p(model), parameters)
    assert context
    try:
        yield Model(library, context, model)
    finally:
        library.llama_free(ctypes.c_void_p(context))
        library.llama_model_free(ctypes.c_void_p(model))


def perplexity(logits: torch.Tensor, tokens: Sequence[int]) -> float:
    """Of ``tokens`` (T,) but the first, under the logits (T, vocabulary) after each."""
    log = torch.log_softmax(logits.double(), -1)[:-1]
    chosen = log.gather(1, torch.tensor(tokens[1:])[:, None])
    return math.exp(-float(chosen.mean()))
