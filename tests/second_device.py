"""A second device without hardware, ``second``: it computes on the CPU, and is as strict as a GPU about what may meet.

torch keeps a place for backends from outside (PrivateUse1). Its tensors here are wrappers around CPU tensors: each
operation is unwrapped, computed and wrapped again. Tensors of the CPU and of ``second`` may not meet, random numbers
need a generator of the device or none, and NumPy can't look inside. So a tensor that is made on the wrong device is an
error in these tests as it is on a GPU, with real values everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

NAME = "second"
aten = torch.ops.aten
#: What copies between devices.
_COPIES = {aten.copy_.default, aten._to_copy.default}
#: What takes indices of the CPU on a GPU too.
_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class _Backend:
    """What torch asks of a backend's module. Others shall not find the device unless a test has switched it on."""

    on = False

    def is_available(self) -> bool:
        return self.on

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """It draws from the CPU's generator."""

    def _is_in_bad_fork(self) -> bool:
        return False


_BACKEND = _Backend()


@contextmanager
def second_device() -> Iterator[str]:
    """The device's name, while it can be used."""
    register()
    _BACKEND.on = True
    try:
        yield NAME
    finally:
        _BACKEND.on = False


class SecondTensor(Tensor):
    """A tensor on ``second``; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> SecondTensor:
        made: SecondTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert a tensor on {NAME} to numpy; use Tensor.cpu() first")
        return self.held.numpy(force=True)

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{NAME}({self.held!r})"


def _dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    flat, structure = tree_flatten((tuple(args), dict(kwargs)))
    ours = [each for each in flat if isinstance(each, SecondTensor)]
    if func not in _COPIES:
        _check_devices(func, args, flat)
    plain_args, plain_kwargs = tree_unflatten([_unwrapped(each) for each in flat], structure)
    made = func(*plain_args, **plain_kwargs)
    if any(each.shape != each.held.shape for each in ours):
        raise NotImplementedError(f"{func} changes the size of a tensor in place")
    wanted = kwargs.get("device")
    here = bool(ours) if wanted is None else torch.device(wanted).type == NAME
    if func is aten.copy_.default:
        here = isinstance(args[0], SecondTensor)
    known = {id(each.held): each for each in ours}  # what works in place gives back what it was given

    def wrapped(each: Tensor) -> Tensor:
        return known[id(each)] if id(each) in known else SecondTensor(each) if here else each

    return tree_map_only(Tensor, wrapped, made)


def _check_devices(func: Any, args: Sequence[Any], flat: Sequence[Any]) -> None:
    allowed: set[int] = set()
    if func in _INDEXED and isinstance(args[0], SecondTensor):
        allowed = {id(index) for index in args[1]}
    for each in flat:
        if isinstance(each, Tensor) and not isinstance(each, SecondTensor) and each.dim() and id(each) not in allowed:
            raise RuntimeError(f"{func}: all tensors must be on one device, but they are on {NAME} and cpu")
        if isinstance(each, torch.Generator) and each.device.type != NAME:
            raise RuntimeError(f"{func}: a generator of {each.device} for a tensor on {NAME}")


def _unwrapped(value: Any) -> Any:
    if isinstance(value, SecondTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _factory(func: Any) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        for each in (*args, *kwargs.values()):
            if isinstance(each, torch.Generator) and each.device.type != NAME:
                raise RuntimeError(f"{func}: a generator of {each.device} for a tensor on {NAME}")
        kwargs.pop("pin_memory", None)
        return SecondTensor(func(*args, **{**kwargs, "device": torch.device("cpu")}))

    return made


def _factories() -> Iterator[tuple[str, Any]]:
    """All operations that make a tensor out of none, by name."""
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        base, _, overload = name.removeprefix("aten::").partition(".")
        arguments = torch._C._get_schema(f"aten::{base}", overload).arguments
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
        takes = any("Tensor" in str(argument.type) for argument in arguments)
        if any(argument.name == "device" for argument in arguments) and not takes and not composite:
            yield name, getattr(getattr(aten, base), overload or "default")


@functools.cache
def register() -> torch.library.Library:
    """Once per process, as torch can't forget a backend; before the first backward pass, which counts devices."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_BACKEND)
    library = torch.library.Library("aten", "IMPL")
    for name, func in _factories():
        library.impl(name.removeprefix("aten::"), _factory(func), "PrivateUse1")

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        copied: Tensor = _dispatch(aten.copy_.default, (target, source), {})
        return copied

    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library
