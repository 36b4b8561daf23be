"""What the linears of a block are given while samples pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from mixprec.models.decoder import Group
from mixprec.models.weights import module_of
from mixprec.numerics.products import exact


@contextmanager
def watching(block: nn.Module, groups: Sequence[Group], call: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``call(number of the group, inputs)`` before the first linear of each group that the pass inside reaches."""
    modules = [[module_of(block, linear) for linear in group] for group in groups]
    with watching_modules(modules, lambda number, arguments: call(number, arguments[0])):
        yield


@contextmanager
def watching_modules(
    modules: Sequence[Sequence[nn.Module]], call: Callable[[int, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    """Call ``call(number, arguments)`` before the first of the modules of each number that the pass inside reaches."""
    reached: set[int] = set()

    def reach(number: int, arguments: tuple[Tensor, ...]) -> None:
        if number not in reached:
            reached.add(number)
            with exact(arguments[0].device):
                call(number, arguments)

    with ExitStack() as stack:
        for number, each in enumerate(modules):
            for module in each:
                hook = module.register_forward_pre_hook(
                    lambda _module, arguments, number=number: reach(number, arguments)
                )
                stack.callback(hook.remove)
        yield


class _Reached(Exception):
    """Ends a pass at the module whose arguments were wanted."""

    def __init__(self, arguments: tuple[Tensor, ...]) -> None:
        super().__init__("a pass ends here")
        self.arguments = arguments


def arguments_of(modules: Sequence[nn.Module], run: Callable[[], object]) -> tuple[Tensor, ...]:
    """What the first of ``modules`` that the pass ``run`` reaches is called with; the pass ends there."""

    def stop(_number: int, arguments: tuple[Tensor, ...]) -> None:
        raise _Reached(arguments)

    try:
        with watching_modules([modules], stop):
            run()
    except _Reached as reached:
        return reached.arguments
    raise AssertionError("no pass through the block reaches the modules")
