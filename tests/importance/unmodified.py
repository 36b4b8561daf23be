"""Full backpropagation through transformers' own model, experts stacked as it stacks them: the reference for any."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixprec.importance.windows import Window


def model_in_float64(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The model in another type, its weights so large that mixers and routers matter; parameters need no gradient."""
    # Grouped products of experts are made for half precision; transformers' loop is plain.
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    model = model.to(dtype).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dim() >= 2:
            parameter.mul_(5.0)
        elif "norm" not in name and not parameter.any():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3)
    return model


class Wide(TorchFunctionMode):
    """transformers' code in float64 throughout: its casts of float64 to float32 (norms, softmax, recurrences) are left
    out, which would round at 1e-8 and let two orders of summation differ by as much."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func in (Tensor.to, Tensor.type, Tensor.softmax, torch.softmax, F.softmax):
                args = tuple(torch.float64 if each is torch.float32 else each for each in args)
                if named.get("dtype") is torch.float32:
                    named["dtype"] = torch.float64
        return func(*args, **named)


class _OfExperts(TorchFunctionMode):
    """Notes what a stack's matrices make: (stack's name, expert) -> output, and the tokens that it belongs to."""

    def __init__(self, stacks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._stacks = stacks
        self._tokens = torch.tensor(0)
        self.found: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.where and len(args) == 1:
            self._tokens = made[-1]
        if func in (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__) and isinstance(args[1], Tensor):
            for name, stack in self._stacks.items():
                number, rest = divmod(args[1].data_ptr() - stack.data_ptr(), stack.stride(0) * stack.element_size())
                if args[1].shape == stack.shape[1:] and 0 <= number < len(stack) and not rest:
                    made.retain_grad()
                    self.found[name, number] = made, self._tokens
        return made


def full_backpropagation(model: Any, wanted: list[str], tokens: Tensor, window: Window) -> dict[str, Tensor]:
    """Address -> gradient (d_out,) of the window's mean cross-entropy, mean over its positions.

    ``wanted``: addresses of linear modules as mixprec names them, those of experts among them.
    """
    modules = dict(model.named_modules())
    kept: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        if output.requires_grad:  # what only helps to choose has no gradient
            output.retain_grad()
        kept[name] = output

    handles = [
        modules[name].register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name in wanted
        if name in modules
    ]
    handles.append(
        model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.detach().requires_grad_())
    )
    stacks = {name: tensor for name, tensor in model.named_parameters() if tensor.dim() == 3 and ".experts." in name}
    experts = _OfExperts(stacks)
    with experts if stacks else nullcontext():
        logits = model(input_ids=tokens[None, : window.end]).logits[0]
    for handle in handles:
        handle.remove()
    first = max(window.start, 1)
    F.cross_entropy(logits[first - 1 : window.end - 1], tokens[first : window.end]).backward()
    gradients = {name: _at(output, None, window) for name, output in kept.items()}
    for (name, number), (output, rows) in experts.found.items():
        path, _, kind = name.rpartition(".")
        core = modules[path]
        mean = _at(output, rows, window)
        if kind == "gate_up_proj":
            half = len(mean) // 2
            parts = (mean[:half], mean[half:]) if core.is_concatenated else (mean[0::2], mean[1::2])
            for part, each in zip(("gate_proj", "up_proj"), parts, strict=True):
                gradients[f"{path}.{number}.{part}"] = each
        else:
            gradients[f"{path}.{number}.{kind}"] = mean
    return gradients


def _at(output: Tensor, rows: Tensor | None, window: Window) -> Tensor:
    """Mean over the window's positions of the gradient at an output, whose rows are all tokens' or ``rows``."""
    gradient = torch.zeros_like(output) if output.grad is None else output.grad
    gradient = gradient.flatten(0, -2)
    rows = torch.arange(len(gradient)) if rows is None else rows
    inside = (rows >= window.start) & (rows < window.end)
    return gradient[inside].sum(0) / (window.end - window.start)


def outputs_of(model: nn.Module, wanted: list[str], tokens: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Address -> sum (R, d_out) of outputs with weights (R, T) over a plain forward pass."""
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}

    def add(name: str, output: Tensor) -> None:
        found[name] = weights.double() @ output.flatten(0, -2).double()

    handles = [
        modules[name].register_forward_hook(lambda _m, _i, output, name=name: add(name, output))
        for name in wanted
        if name in modules
    ]
    with torch.no_grad():
        model(input_ids=tokens[None])
    for handle in handles:
        handle.remove()
    return found
