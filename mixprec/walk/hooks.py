"""What the linears of a block are given while samples pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from mixprec.models.decoder import Group
from mixprec.models.weights import module_of


@contextmanager
def watching(block: nn.Module, groups: Sequence[Group], call: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``call(number of the group, inputs)`` before the first linear of each group that the pass inside reaches."""
    reached: set[int] = set()

    def reach(number: int, inputs: Tensor) -> None:
        if number not in reached:
            reached.add(number)
            call(number, inputs)

    with ExitStack() as stack:
        for number, group in enumerate(groups):
            for module in group:
                hook = module_of(block, module).register_forward_pre_hook(
                    lambda _module, arguments, number=number: reach(number, arguments[0])
                )
                stack.callback(hook.remove)
        yield


class _Reached(Exception):
    """Ends a pass at the group whose inputs were wanted."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__("a pass ends here")
        self.inputs = inputs


def inputs_of(block: nn.Module, group: Group, run: Callable[[], object]) -> Tensor:
    """What ``group`` is given in the pass ``run``, which ends there."""

    def stop(_number: int, inputs: Tensor) -> None:
        raise _Reached(inputs)

    try:
        with watching(block, [group], stop):
            run()
    except _Reached as reached:
        return reached.inputs
    raise AssertionError(f"{group[0].address}: no pass through its block reaches it")
