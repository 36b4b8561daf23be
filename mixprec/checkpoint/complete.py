"""Whether a checkpoint is its model, whole and nothing else: the tensors that config.json asks for, in their shapes.

transformers fills what is missing with random numbers and passes over what it doesn't know, and says so only in a log.
Looked at before any work, in headers alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from mixprec.errors import UserError
from mixprec.modules import EMBEDDING, HEAD

Shape = tuple[int, ...]

EMBEDDING_WEIGHT: Final = f"{EMBEDDING}.weight"
HEAD_WEIGHT: Final = f"{HEAD}.weight"
#: Names among which those are looked for that differ in their beginnings alone: a stranger's file may have millions.
_LOOKED_AT: Final = 200
#: Buffers that old versions of transformers saved: they are computed from the configuration.
_COMPUTED: Final = re.compile(r"(.+\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")


def is_computed(name: str) -> bool:
    """Whether a tensor is one that models compute and don't read, so that it may be there or not."""
    return _COMPUTED.fullmatch(name) is not None


def expected(config: PretrainedConfig) -> dict[str, Shape]:
    """Name -> shape of every tensor that the model of ``config`` has, a tied head too."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_complete(where: object, found: Mapping[str, Shape], config: PretrainedConfig) -> None:
    """``found``, name -> shape, are the tensors of ``config``'s model; ``where``: the file or folder, for errors.

    A tied head may be there or not, and so may buffers that models compute.
    Raises UserError naming what is missing, what nobody reads, or the shape that is another.
    """
    wanted = expected(config)
    optional = {HEAD_WEIGHT} if config.tie_word_embeddings else set()
    missing = [name for name in wanted if name not in found and name not in optional]
    unread = [name for name in found if name not in wanted and not is_computed(name)]
    if missing or unread:
        raise UserError(f"{where}: {_renamed(missing, unread) or _difference(missing, unread, config)}")
    for name, shape in found.items():
        if wanted.get(name, shape) != shape:
            raise UserError(f"{where}: {name} has the shape {shape}, config.json asks for {wanted[name]}")


def _renamed(missing: Sequence[str], unread: Sequence[str]) -> str | None:
    """What to do where the tensors are there under other names: a prefix is lacking, or there is one too many."""
    pairs = ((name, mine) for name in unread[:_LOOKED_AT] for mine in missing[:_LOOKED_AT] if _same(name, mine))
    theirs, ours = next(pairs, (None, None))
    if theirs is None:
        return None
    return (
        f"its tensors have other names: {theirs} is {ours} in this architecture, as if a part of a model had been "
        "saved, or a larger one; load the original with transformers' AutoModelForCausalLM, and save it again"
    )


def _same(one: str, other: str) -> bool:
    """Whether two names differ in their beginnings alone."""
    ends = [name.partition("layers.")[2] for name in (one, other)]
    return one.endswith(f".{other}") or other.endswith(f".{one}") or (ends[0] != "" and ends[0] == ends[1])


def _difference(missing: Sequence[str], unread: Sequence[str], config: PretrainedConfig) -> str:
    said = []
    if missing:
        said.append(f"{len(missing)} weights are missing, first {missing[0]}")
    if missing == [HEAD_WEIGHT]:
        said.append("config.json says that the head is not tied to the embedding (tie_word_embeddings)")
    if unread:
        said.append(f"{len(unread)} tensors are there that {config.model_type} does not read, first {unread[0]}")
    return "; ".join([*said, "fetch the whole checkpoint again, or mend config.json"])
