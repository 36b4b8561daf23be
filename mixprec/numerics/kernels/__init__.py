"""A seam for kernels of devices: which function carries an operation out where its tensors lie.

An operation is a function in torch with ``@operation``. It works on every device and is the reference: a kernel that
does the same faster on one type of device stands in KERNELS, and is compared with it (tests/numerics/test_kernels.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from torch import Tensor

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

#: Operation -> type of a device -> what does it there, in the place of torch.
KERNELS: Final[dict[str, dict[str, Callable[..., Any]]]] = {
    "groupwise.fit": {},
    "groupwise.encode": {},
    "groupwise.dequantize": {},
    "codebook.dequantize_codebook": {},
    "packing.pack": {},
    "packing.unpack": {},
    "gptq.solve": {},
}


def operation(reference: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """``reference``, or the kernel of the device on which the first of its tensors lies; it stays under __wrapped__."""
    kernels = KERNELS[f"{reference.__module__.rpartition('.')[2]}.{reference.__name__}"]

    @functools.wraps(reference)
    def chosen(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        if kernels and (kernel := kernels.get(_device(args[0]))) is not None:
            made: _Made = kernel(*args, **kwargs)
            return made
        return reference(*args, **kwargs)

    return chosen


def _device(given: Any) -> str:
    """The type of device of a tensor, or of the first one of a tuple."""
    return given.device.type if isinstance(given, Tensor) else _device(given[0])
