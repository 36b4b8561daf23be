"""Names of tensors in checkpoints -> names in the model that is made of them, experts one by one.

transformers renames what it loads (prefixes of multimodal models, Mixtral's w1) and stacks experts. Its own rules do
the renaming here; what it would stack keeps a name of its own, as in models/experts.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from transformers import conversion_mapping, core_model_loading

from mixprec.core.errors import UserError
from mixprec.models.experts import Experts

_EXPERT: Final = re.compile(r"\.experts\.(\d+)\.")
#: Parts of stacked parameters, in the order in which they are joined.
_PARTS: Final = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}


class Cut(NamedTuple):
    """A matrix (out, in), or a bias (out,), as a part of a stored stack: of number ``expert`` the rows ``start`` to
    ``stop`` in steps of ``step``, which are columns where the stack is ``transposed``."""

    expert: int
    start: int
    stop: int
    step: int
    transposed: bool

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop, self.step)


class Stack(NamedTuple):
    """How transformers keeps a layer's experts: how many, whether gate and up are joined row by row, not one behind the
    other, and whether a matrix's second axis is that of its outputs."""

    experts: int
    interleaved: bool
    transposed: bool


class Names:
    """The renaming of one architecture's checkpoints."""

    def __init__(self, model: Any) -> None:
        """``model``: without weights, its experts as modules."""
        rules = conversion_mapping.get_model_conversion_mapping(model)
        self._renamings = [rule for rule in rules if not isinstance(rule, core_model_loading.WeightConverter)]
        self._converters = [rule for rule in rules if isinstance(rule, core_model_loading.WeightConverter)]
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.stacks = {
            path: Stack(len(module), not module.core.is_concatenated, module.core.is_transposed)
            for path, module in model.named_modules()
            if isinstance(module, Experts)
        }

    def of(self, stored: str) -> str:
        """The model's name of a stored tensor; packed parts of a module keep their endings.

        Raises UserError for one that transformers joins with others, of what is no expert.
        """
        if stored in self._shapes:
            return stored
        renamed = self._renamed(stored)
        module, _, part = stored.rpartition(".")
        if renamed in self._shapes or part in ("weight", "bias") or not module:
            return renamed
        weight = self._renamed(f"{module}.weight")
        return f"{weight.removesuffix('.weight')}.{part}" if weight in self._shapes else renamed

    def _renamed(self, stored: str) -> str:
        key = stored
        for rule in self._renamings:
            key, _ = rule.rename_source_key(key)
        number = _EXPERT.search(key)
        for rule in self._converters if number else ():
            target, pattern = rule.rename_source_key(key)
            parts = _PARTS.get(target.rpartition(".")[2]) if pattern is not None else None
            if parts is not None and number is not None:
                part = parts[rule.source_patterns.index(pattern) % len(parts)]
                return f"{target.rpartition('.')[0]}.{number[1]}.{part}.weight"
        for rule in self._converters if key not in self._shapes else ():
            target, pattern = rule.rename_source_key(key)
            if pattern is not None and target in self._shapes:
                raise UserError(
                    f"{stored}: transformers makes {target} of it and others when it loads; of tensors that are "
                    "joined only those of experts are read here, so this architecture's files are not"
                )
        return key

    def cuts(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Cut | None, tuple[int, ...]]]:
        """What a tensor of this shape holds, by the model's names, where that lies in it, and its shape: itself, but
        for stacks of experts. ``name``: the model's."""
        path, _, leaf = name.rpartition(".")
        bias = leaf.endswith("_bias")
        parts = _PARTS.get(leaf.removesuffix("_bias"))
        stack = self.stacks.get(path)
        if stack is None or parts is None or shape[:1] != (stack.experts,) or name in self._shapes:
            yield name, None, shape
            return
        for expert in range(stack.experts):
            for number, part in enumerate(parts):
                own = f"{path}.{expert}.{part}.{'bias' if bias else 'weight'}"
                wanted = self._shapes.get(own, ())
                yield own, self._cut(expert, number, len(parts), stack, shape, wanted, bias), wanted

    def _cut(
        self, expert: int, number: int, count: int, stack: Stack, shape: tuple[int, ...], wanted: tuple[int, ...],
        bias: bool,
    ) -> Cut:  # fmt: skip
        out = wanted[0]
        # Files may have either axis first. Where both are equal it is stored as transformers keeps it, as gpt-oss is.
        square = not bias and count * out == wanted[1]
        transposed = stack.transposed if square else not bias and shape[1:] != (count * out, wanted[1])
        if count == 1:
            return Cut(expert, 0, out, 1, transposed)
        if stack.interleaved:
            return Cut(expert, number, count * out, count, transposed)
        return Cut(expert, number * out, (number + 1) * out, 1, transposed)
