"""From text to token ids: the one place that calls a tokenizer.

Prompts, traces, texts, calibration data and what is generated from all go through an ``Encoder``, so that a model sees
the same tokens at the beginning of a text wherever it sees that text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from mixprec.core import artifacts
from mixprec.core.errors import UserError


class Encoded(NamedTuple):
    """Token ids of a text, and for each the characters ``(start, end)`` that it stands for; (0, 0) if it has none."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Encoder:
    """Encodes text for a model whose embedding has ``rows`` rows.

    A text gets the model's ``head`` in front exactly once, and nothing behind. The head is BOS as a rule; GLM has two
    tokens, SmolLM2 and Qwen2.5 have none. What decides:

    - ``add_bos``, which is ``add_bos_token`` of tokenizer_config.json, where the file has it. transformers 5 ignores
      this key where there is a tokenizer.json, earlier versions and llama.cpp's converter follow it.
    - Otherwise what the tokenizer's post-processor puts in front of a text. A ``bos_token`` that no post-processor
      puts there is not added: a model that never saw it in training should not see it here.

    What the post-processor puts behind a text (EOS, SEP) would end the text that the model is to continue, and is
    never added. A text that begins with the head, as most chat templates do, keeps that one, and repetitions of it
    right behind are dropped. The rest of the text is encoded as it would be without special tokens around it.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: int
    add_bos: bool | None = None

    @cached_property
    def vocabulary(self) -> str:
        """sha256 of what each id stands for: ids of one model are another's words where it differs."""
        return artifacts.fingerprint(sorted(self.tokenizer.get_vocab().items()))

    @cached_property
    def head(self) -> tuple[int, ...]:
        """The ids that belong in front of every text; often one, or none."""
        found, bos = self._processed_head, self.tokenizer.bos_token_id
        if self.add_bos is True and not found and bos is not None:
            return (int(bos),)
        if self.add_bos is False and found == (bos,):
            return ()
        return found

    @property
    def _processed_head(self) -> tuple[int, ...]:
        """What the post-processor puts in front."""
        probe = self.tokenizer("a", return_special_tokens_mask=True, verbose=False)
        added = probe["special_tokens_mask"]
        return tuple(probe["input_ids"][: added.index(0)]) if 0 in added else ()

    @cached_property
    def eos(self) -> int | None:
        """The id that ends a text, or None where the tokenizer has none. Raises UserError as ``check`` does."""
        found = self.tokenizer.eos_token_id
        if not isinstance(found, int):
            return None
        self.check([found])
        return found

    def __call__(self, text: str) -> Encoded:
        """The text with the head in front, once. Raises UserError as ``check`` does."""
        ids, offsets = self.own(text)
        front = missing(self.head, ids)
        self.check(front)
        return Encoded([*front, *ids], [(0, 0)] * len(front) + offsets)

    def own(self, text: str) -> Encoded:
        """The text's own tokens, with nothing added; a head that it begins with is there once."""
        ids, offsets = self.piece(text)
        size = len(self.head)
        while size and tuple(ids[: 2 * size]) == self.head * 2:
            ids, offsets = ids[size:], offsets[size:]
        return Encoded(ids, offsets)

    def piece(self, text: str) -> Encoded:
        """A piece from within a text as it is. Raises UserError as ``check`` does."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self.check(found["input_ids"])
        return Encoded(found["input_ids"], found["offset_mapping"])

    def check(self, ids: Iterable[int]) -> None:
        """Every id has a row in the model's embedding.

        Raises UserError naming the tokens that have none.
        """
        beyond = sorted({number for number in ids if number >= self.rows})
        if beyond:
            listed = ", ".join(f"{self.tokenizer.convert_ids_to_tokens(one)!r} ({one})" for one in beyond[:5])
            more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
            raise UserError(
                f"{self.tokenizer.name_or_path}: the tokenizer uses ids that the embedding's {self.rows} rows don't "
                f"reach: {listed}{more}; give the tokenizer that belongs to these weights, or add rows with "
                f"model.resize_token_embeddings({max(len(self.tokenizer), beyond[-1] + 1)}) and train them"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def missing(head: Sequence[int], ids: Sequence[int]) -> tuple[int, ...]:
    """What of ``head`` has to go in front of ``ids``, which may begin with all of it or with its last tokens."""
    for present in range(len(head), 0, -1):
        if list(ids[:present]) == list(head[-present:]):
            return tuple(head[:-present])
    return tuple(head)


def declared_bos(where: str, revision: str | None = None) -> bool | None:
    """``add_bos_token`` of the tokenizer_config.json in a folder or a hub repository; None where it doesn't say."""
    found = get_tokenizer_config(where, revision=revision).get("add_bos_token")
    return found if isinstance(found, bool) else None


class Window(NamedTuple):
    """Tokens ``start`` to ``end`` of a stream, and what of the head goes ``front`` of them."""

    front: tuple[int, ...]
    start: int
    end: int

    @property
    def length(self) -> int:
        """Tokens with those in front."""
        return len(self.front) + self.end - self.start


def windows(ids: Sequence[int], length: int, head: Sequence[int]) -> Iterator[Window]:
    """Consecutive windows of ``length`` tokens, each with the head in front; the last one may be shorter.

    ``length`` is more than the head's.
    """
    start = 0
    while start < len(ids):
        front = missing(head, ids[start : start + len(head)])
        end = min(start + length - len(front), len(ids))
        yield Window(front, start, end)
        start = end
