"""Which path a model's attribution takes: seen on a few tokens, not told by names of architectures."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.importance.probing import ALIKE, probe_tokens, why_not_packed
from mixprec.importance.spans import Prefix, Way
from mixprec.models.experts import ExpertLinear
from mixprec.models.weights import linears_of
from mixprec.walk.blocks import Blocks, Live

Path = Literal["packed", "cached", "stepwise", "whole"]

_SAID: Final = {
    "cached": "each span goes behind a copy of the cache of what is before it",
    "stepwise": "each span goes token by token behind a copy of the cache of what is before it",
    "whole": "each span goes with all that is before it, which is slow",
}
#: How far hidden states in half precision may differ.
_ALIKE_HALF: Final = 0.1
#: The probe's tokens, and its spans: behind a prefix, at the start, and one token behind another prefix.
_TOKENS: Final = 24
_SPANS: Final = ((4, 7), (9, 20), (20, 21), (0, 8))


class Chosen(NamedTuple):
    """``why`` spans aren't packed, where they aren't. ``theirs``: behind a cache of the model's own kind."""

    path: Path
    why: str = ""
    theirs: bool = False


_chosen: weakref.WeakKeyDictionary[Any, Chosen] = weakref.WeakKeyDictionary()


def path_of(opened: Blocks | Live) -> Chosen:
    """The path of a model, looked at once; where it isn't the packed one, a line says so.

    Raises UserError for a model whose blocks are on disk and whose spans can't be packed.
    """
    model = opened.model
    if model not in _chosen:
        why = why_not_packed(opened)
        if why is not None and not isinstance(opened, Live):
            raise UserError(
                f"stream: {model.config.model_type} can't be attributed block by block ({why}); "
                "leave out stream (--stream) and load the whole model, over several GPUs with device: auto"
            )
        _chosen[model] = Chosen("packed") if why is None else _way(model, why)
        if why is not None:
            console.print(f"attribution, {_chosen[model].path}: {_SAID[_chosen[model].path]} ({why})", soft_wrap=True)
    return _chosen[model]


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether values (1, n, d) are the same but for rounding, at most tokens: a router may choose otherwise at one."""
    allowed = ALIKE if theirs.element_size() >= 4 else _ALIKE_HALF
    one, other = (tensor.detach().to("cpu", torch.float64)[0] for tensor in (ours, theirs))
    each = (one - other).abs().amax(1) / other.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)
    return bool(each.nan_to_num(torch.inf).median() <= allowed)


def _way(model: Any, why: str) -> Chosen:
    """The cheapest way that gives what whole passes give, gradients included."""
    expected = _outcomes(model, "whole", False)
    ways: tuple[Way, ...] = ("cached", "stepwise")
    for way, theirs in itertools.product(ways, (False, True)):
        try:
            found = _outcomes(model, way, theirs)
        except Exception:  # a model that isn't made to be continued in this way breaks in its own way
            continue
        if all(alike(one, other) for one, other in zip(found, expected, strict=True)):
            return Chosen(way, why, theirs)
    return Chosen("whole", why)


def _outcomes(model: Any, way: Way, theirs: bool) -> list[Tensor]:
    """Of each of the probe's spans the final hidden states, and a function's gradient at its embeddings."""
    prefix, found = Prefix(model, probe_tokens(model, _TOKENS), theirs=theirs), []
    for start, end in _SPANS:
        with _own_tokens(model, {"cached": end - start, "stepwise": 1, "whole": end}[way]):
            made = prefix.span(way, start, end)
        direction = torch.randn(made.hidden.shape, generator=torch.Generator().manual_seed(2))
        found += [made.hidden.detach(), made.gradient(direction.to(made.hidden))]
    return found


@contextmanager
def _own_tokens(model: Any, count: int) -> Iterator[None]:
    """Linear modules inside work on the pass's ``count`` tokens: some attention multiplies keys out of the cache anew,
    and what those of earlier tokens receive is not the span's.

    Raises UserError for one that works on others, and for one that has no gradient: it chooses what attention looks at,
    and what is chosen of equals differs from pass to pass.
    """
    met: dict[str, bool] = {}

    def look(name: str, output: Tensor) -> None:
        met[name] = met.get(name, False) or output.requires_grad
        if output.requires_grad and output.shape[:-1].numel() != count:
            raise UserError(
                f"{model.config.model_type}: {name} works on something else than the tokens of a pass; such models "
                "can't be attributed exactly; choose modules by rules that need no importance"
            )

    with ExitStack() as stack:
        for name, module in linears_of(model).items():
            if not isinstance(module, ExpertLinear):
                hook = module.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
                stack.callback(hook.remove)
        yield
    choosing = [name for name, moves in met.items() if not moves]
    if choosing:
        raise UserError(
            f"{model.config.model_type}: {choosing[0]} chooses the keys that attention looks at and has no gradient; "
            "such models can't be attributed exactly; rank modules by mixprec sensitivity instead"
        )
