"""Whether a checkpoint is its model, whole and nothing else: the tensors that config.json asks for, in their shapes.

transformers fills what is missing with random numbers, passes over what it doesn't know, and says so only in a log.
This check reads headers alone, before any work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder

Shape = tuple[int, ...]

#: At most so many names are compared to find a prefix that differs: a stranger's file may have millions.
_LOOKED_AT: Final = 200
#: Buffers that old versions of transformers saved; models compute them from the configuration.
_COMPUTED: Final = re.compile(r"(.+\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")


def is_computed(name: str) -> bool:
    """Whether models compute this tensor themselves; a checkpoint may hold it or not."""
    return _COMPUTED.fullmatch(name) is not None


def is_passed_over(name: str, decoder: Decoder) -> bool:
    """Whether a tensor that the model has not may lie beside its own: what it computes itself, and layers of a
    checkpoint that transformers doesn't build, such as those that predict several tokens."""
    return is_computed(name) or any(re.search(pattern, name) for pattern in decoder.unread)


def check_complete(where: object, found: Mapping[str, Shape], decoder: Decoder) -> None:
    """Check that ``found`` (name -> shape) holds the tensors of ``decoder``; ``where`` names it in errors.

    A tied head may be there or not, and so may buffers that models compute.
    Raises UserError naming what is missing, what the model does not read, or the first shape that differs.
    """
    wanted = decoder.shapes
    optional = {decoder.head_weight} if decoder.tied else set()
    missing = [name for name in wanted if name not in found and name not in optional]
    unread = [name for name in found if name not in wanted and not is_passed_over(name, decoder)]
    if missing or unread:
        raise UserError(f"{where}: {_renamed(missing, unread) or _difference(missing, unread, decoder)}")
    for name, shape in found.items():
        if wanted.get(name, shape) != shape:
            raise UserError(f"{where}: {name} has the shape {shape}, config.json asks for {wanted[name]}")


def _renamed(missing: Sequence[str], unread: Sequence[str]) -> str | None:
    """What to do where a prefix is lacking in the names, or one too many; None where they differ otherwise."""
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


def _difference(missing: Sequence[str], unread: Sequence[str], decoder: Decoder) -> str:
    said = []
    if missing:
        said.append(f"missing weights: {len(missing)}, first {missing[0]}")
    if missing == [decoder.head_weight]:
        said.append("config.json says that the head is not tied to the embedding (tie_word_embeddings)")
    if unread:
        said.append(f"tensors that {decoder.architecture} does not read: {len(unread)}, first {unread[0]}")
    return "; ".join([*said, "fetch the whole checkpoint again, or mend config.json"])
