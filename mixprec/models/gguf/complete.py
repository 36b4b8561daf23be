"""Whether a GGUF model is whole, and nothing in it goes unread: looked at in its headers, before transformers reads it.

transformers fills missing tensors with random numbers, and passes over those that it doesn't know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mixprec.models.complete import check_complete
from mixprec.models.decoder import Decoder
from mixprec.models.gguf import mixtures
from mixprec.models.gguf.held import pieces
from mixprec.models.gguf.names import ROPE_TENSOR, names_of_tensors
from mixprec.models.sizes import check_architecture

#: Architectures as GGUF names them -> model_type.
MODEL_TYPES: Final = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "deepseek2": "deepseek_v3",
    "gpt-oss": "gpt_oss",
    "glm4moe": "glm4_moe",
}
#: Keys of config.json -> of a file's metadata, behind its architecture.
_SIZES: Final = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab_size": "vocab_size",
}


def described(path: Path, reader: Any) -> dict[str, Any]:
    """What the metadata of the GGUF model at ``path``, which ``reader`` (parts.read) reads, say of its sizes, by the
    keys of config.json.

    Raises UserError where its architecture is not supported, or sizes are none.
    """
    architecture = _said(reader, "general.architecture")
    # transformers takes a file of this name, and no other one, for a Mistral.
    model_type = "mistral" if _said(reader, "general.name") == "mistral" else MODEL_TYPES.get(architecture)
    found = {key: _said(reader, f"{architecture}.{theirs}") for key, theirs in _SIZES.items()}
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if found["vocab_size"] is None and tokens is not None:
        found["vocab_size"] = len(tokens.data)
    said = {key: value for key, value in found.items() if value is not None}
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = {"model_type": model_type or architecture, **said, "tie_word_embeddings": tied}
    if mixtures.is_mixture(reader):
        config |= mixtures.described(reader)
    check_architecture(config, str(path))
    return config


def _said(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def check_tensors(path: Path, reader: Any, decoder: Decoder) -> None:
    """The model that ``reader`` (parts.read) found at ``path`` is that of ``decoder``, whole.

    Raises UserError naming what is missing, what nobody reads, or the shape that is another.
    """
    names = names_of_tensors(_architecture(reader), decoder.shapes, decoder.layers)
    tensors = [tensor for tensor in reader.tensors if tensor.name != ROPE_TENSOR]
    found = {name: piece.shape for name, piece in pieces(path, tensors, names).items()}
    check_complete(path, found, decoder)


def _architecture(reader: Any) -> str:
    return str(reader.get_field("general.architecture").contents())
