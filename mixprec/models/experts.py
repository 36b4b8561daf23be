"""Experts as modules: each matrix of a mixture of experts is a linear module of its own.

transformers keeps the experts of a layer stacked in three-dimensional parameters and multiplies slices of them. Here
the stack gives way to linear modules, views of the same memory, named as checkpoints name them
(``experts.7.up_proj``). What works on linear modules (hooks, formats, swaps of weights, gradients) then works on
experts, and a forward pass computes what it did: the stack's own gate, in the order of transformers' eager path.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ExpertLinear(nn.Linear):
    """A matrix of one expert. ``tokens``: which of the layer's tokens (n,) its last input came from; None for all."""

    tokens: Tensor | None = None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        # torch's own type says that there always is one.
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))


class Experts(nn.Module):
    """The routed experts of a layer, as modules ``0``, ``1``, … of ``gate_proj``, ``up_proj`` and ``down_proj``."""

    #: What is left of the stack, which computes the gate.
    core: Any

    def __init__(self, stacked: Any) -> None:
        """Takes the place of ``stacked``, whose matrices it holds."""
        super().__init__()
        for number in range(len(stacked.down_proj)):
            self.add_module(str(number), nn.ModuleDict(_linears(stacked, number)))
        # No child, so that it adds no names.
        core: Any = copy.copy(stacked)
        core._parameters = {}
        self.__dict__["core"] = core

    def __len__(self) -> int:
        return len(self._modules)

    def one(self, number: int, inputs: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What an expert makes of ``inputs`` (n, hidden), those of the layer's ``tokens`` (n,)."""
        expert: Any = self._modules[str(number)]
        for linear in expert.values():
            linear.tokens = tokens
        return self.last(number)(self.gated(number, inputs))  # type: ignore[no-any-return]

    def last(self, number: int) -> nn.Module:
        """The linear that puts out what an expert makes."""
        return self.get_submodule(f"{number}.down_proj")

    def gated(self, number: int, inputs: Tensor) -> Tensor:
        """(n, intermediate): what an expert's down projection receives for ``inputs`` (n, hidden)."""
        expert: Any = self._modules[str(number)]
        up = expert["up_proj"](inputs)
        if not self.core.has_gate:
            found: Tensor = self.core.act_fn(up)
            return found
        gate = expert["gate_proj"](inputs)
        joined = torch.cat((gate, up), -1) if self.core.is_concatenated else torch.stack((gate, up), -1).flatten(-2)
        return self.core._apply_gate(joined)  # type: ignore[no-any-return]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(T, hidden) of the tokens' experts ``top_k_index`` (T, k), weighted by ``top_k_weights`` (T, k)."""
        found = torch.zeros_like(hidden_states)
        if hidden_states.is_meta:  # no values, so no choice: the first expert stands for all
            return self.one(0, hidden_states)
        for number in range(len(self)):
            tokens, place = torch.where(top_k_index == number)
            if len(tokens):
                made = self.one(number, hidden_states[tokens], tokens)
                found.index_add_(0, tokens, (made * top_k_weights[tokens, place, None]).to(found.dtype))
        return found


def unstack(model: nn.Module) -> dict[str, nn.Module]:
    """Put ``Experts`` into the place of all stacked experts of a model; path -> what was there, of the same memory."""
    before = {path: module for path, module in model.named_modules() if _is_stacked(module)}
    for path, module in before.items():
        model.set_submodule(path, Experts(module))
    return before


@contextmanager
def unstacked(model: nn.Module) -> Iterator[None]:
    """``unstack`` inside; afterwards the stacks are back, with what was written into their parts."""
    before = unstack(model)
    try:
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)


def _is_stacked(module: Any) -> bool:
    """Whether a module is made by transformers' decorator for experts, in a way that is known here."""
    flags = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "is_concatenated"))
    return (
        flags and not getattr(module, "has_post_expert_norm", False) and getattr(module, "down_proj", None) is not None
    )


def _linears(stacked: Any, number: int) -> dict[str, nn.Module]:
    """One expert's matrices."""

    def of(name: str) -> tuple[Tensor, Tensor | None]:
        matrix = getattr(stacked, name).detach()[number]
        bias = getattr(stacked, f"{name}_bias").detach()[number] if stacked.has_bias else None
        return (matrix.T if stacked.is_transposed else matrix), bias

    made: dict[str, nn.Module] = {}
    if stacked.has_gate:
        weight, bias = of("gate_up_proj")
        half = len(weight) // 2
        rows = (slice(half), slice(half, None)) if stacked.is_concatenated else (slice(0, None, 2), slice(1, None, 2))
        for name, where in zip(("gate_proj", "up_proj"), rows, strict=True):
            made[name] = ExpertLinear(weight[where], None if bias is None else bias[where])
    else:
        made["up_proj"] = ExpertLinear(*of("up_proj"))
    made["down_proj"] = ExpertLinear(*of("down_proj"))
    return made
