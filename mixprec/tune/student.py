"""A compressed model whose stored numbers may move: scales and their like, norms, biases. Its codes stay.

Every number is a master in float32 behind the parameter that is computed from it (``torch.nn.utils.parametrize``), so
that the model's own code runs as it is; what it computes with is always rounded as the checkpoint will be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixprec.checkpoint.base import Held
from mixprec.numerics import storage
from mixprec.numerics.storage import AnyQuantized
from mixprec.numerics.tunable import TUNABLE, as_it_is
from mixprec.tune.masters import Kind, Master

#: Between the name of a tensor and that of a number of it.
_SEPARATOR: Final = "|"


class Plain(NamedTuple):
    """A parameter that is stored as it is, in the checkpoint's type: a norm's weight, or a bias."""

    tensor: Tensor
    kind: Kind


class _Weight(nn.Module):
    """A weight (out, in) computed from numbers; takes the place of one that a module has."""

    def __init__(self, held: Held, chosen: frozenset[Kind], like: Tensor) -> None:
        super().__init__()
        self.held = held._replace(quantized=storage.on_device(held.quantized, like.device))
        self._kind, self._dtype = TUNABLE[type(held.format)], like.dtype
        numbers = self._kind.numbers(*self.held)
        # Where numbers are stored in the type that is computed in, their products are rounded once, as float32's are.
        exact = all(number.start.dtype in (like.dtype, torch.uint8) for number in numbers.values())
        self._wide = like.dtype if exact else torch.promote_types(like.dtype, torch.float32)
        kinds: dict[str, Kind] = {name: "zeros" if name == "zeros" else "scales" for name in numbers}
        self.masters = {name: Master(each, kinds[name]) for name, each in numbers.items() if kinds[name] in chosen}
        self._at_rest = {n: each.start.to(self._wide) for n, each in numbers.items() if n not in self.masters}
        self._fixed = self._kind.fixed(*self.held)

    def forward(self, _original: Tensor) -> Tensor:
        moving = {name: master.stored().to(self._wide) for name, master in self.masters.items()}
        return self._kind.weight(self._fixed, self._at_rest | moving, self._dtype)

    def result(self) -> AnyQuantized:
        """What the weight is stored as."""
        start = self._kind.numbers(*self.held)
        now = {name: master.stored().to(start[name].start.dtype) for name, master in self.masters.items()}
        made = self._kind.put(self.held.quantized, {name: number.start for name, number in start.items()} | now)
        return storage.on_device(made, "cpu")


class _Stored(nn.Module):
    """A parameter that is stored as it is."""

    def __init__(self, plain: Plain, like: Tensor) -> None:
        super().__init__()
        self._dtype, self._stored = like.dtype, plain.tensor.dtype
        self.master = Master(as_it_is(plain.tensor.to(like.device)), plain.kind)

    @property
    def masters(self) -> dict[str, Master]:
        return {"plain": self.master}

    def forward(self, _original: Tensor) -> Tensor:
        return self.master.stored().to(self._dtype)

    def result(self) -> Tensor:
        """What is stored."""
        return self.master.stored().to("cpu", self._stored)


class Student:
    """``model``, loaded, which from now on computes its parameters from numbers that may move.

    ``weights``: full name of a parameter -> what holds it; those of formats without such numbers stay as they are.
    ``plain``: other parameters that may move. ``chosen``: the kinds of numbers that do.
    """

    def __init__(
        self, model: Any, weights: Mapping[str, Held], plain: Mapping[str, Plain], chosen: frozenset[Kind]
    ) -> None:
        self.model = model
        self._weights: dict[str, _Weight] = {}
        self._plain: dict[str, _Stored] = {}
        for name, held in weights.items():
            if type(held.format) in TUNABLE:
                weight = _Weight(held, chosen, model.get_parameter(name))
                if weight.masters:
                    self._weights[name] = weight
        for name, each in plain.items():
            if each.kind in chosen:
                self._plain[name] = _Stored(each, model.get_parameter(name))
        for name, computed in (self._weights | self._plain).items():
            _replace(model, name, computed)
        self.masters: dict[str, Master] = {
            f"{tensor}{_SEPARATOR}{name}": master
            for tensor, computed in (self._weights | self._plain).items()
            for name, master in computed.masters.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Copies of the masters' steps."""
        return {name: master.step.detach().clone() for name, master in self.masters.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put the steps of ``state`` back."""
        for name, master in self.masters.items():
            master.step.copy_(state[name])

    @torch.no_grad()
    def quantized(self) -> dict[str, AnyQuantized]:
        """Name of a weight -> what it is stored as now."""
        return {name: weight.result() for name, weight in self._weights.items()}

    @torch.no_grad()
    def plain(self) -> dict[str, Tensor]:
        """Name of another parameter -> what is stored of it now."""
        return {name: stored.result() for name, stored in self._plain.items()}


def _replace(model: nn.Module, name: str, computed: nn.Module) -> None:
    """Compute the parameter ``name``, wherever the model has it."""
    parameter = model.get_parameter(name)
    places = [place for place, other in model.named_parameters(remove_duplicate=False) if other is parameter]
    empty = nn.Parameter(torch.empty(0, dtype=parameter.dtype, device=parameter.device), requires_grad=False)
    for place in places:
        owner, _, own = place.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, own, empty)
        parametrize.register_parametrization(module, own, computed, unsafe=True)
