"""A pass of shapes through a model without weights: which linear modules receive one tensor, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line, quiet
from mixprec.models.experts import Experts

#: What models raise that look at values, or want another cache; whatever else they raise is a fault to be told.
_LOOKS: Final = (RuntimeError, ValueError, LookupError)


class Seen(NamedTuple):
    """What a pass saw. ``together``: linear module -> paths within its block of those that receive the tensor that it
    does; ``order``: a block's path -> its linear modules in the order in which they run. ``parts``: of what a block
    returns, hidden states first; 0 where it returns those alone. ``stopped``: why the pass did not go through to the
    end, in words; what it didn't reach is in neither. Else empty."""

    together: Mapping[str, tuple[str, ...]]
    order: Mapping[str, tuple[str, ...]]
    parts: int
    stopped: str


def passed(model: Any, text: PretrainedConfig, body: str, blocks_path: str, where: str) -> Seen:
    """A pass through ``model``, which lies on meta; its ``body`` goes through the blocks at ``blocks_path``.

    Raises UserError for a model that can't be called with tokens alone; ``where`` names it.
    """
    inside, blocks = model.get_submodule(body), model.get_submodule(blocks_path)
    tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
    # With a cache, since without one transformers looks at values of positions; some make one of their own kind.
    ways: list[Callable[[], Any]] = [
        lambda: inside(input_ids=tokens, past_key_values=DynamicCache(config=text), use_cache=True),
        lambda: inside(input_ids=tokens),
    ]
    reasons: list[str] = []
    tried: list[_Watch] = []
    for way in ways:
        tried.append(watch := _Watch(blocks_path))
        try:
            with quiet(), torch.no_grad(), watch.watching(blocks):
                way()
        except _LOOKS as problem:
            reasons.append(first_line(problem))
        except Exception as problem:
            raise UserError(
                f"{where}: {type(model).__name__} can't be called with tokens alone ({first_line(problem)})"
            ) from None
        else:
            return watch.seen(blocks, "")
    furthest = max(tried, key=lambda watch: watch.calls)
    return furthest.seen(blocks, f"the pass of shapes stopped: {'; '.join(dict.fromkeys(reasons))}")


class _Watch:
    """Notes what the linear modules of blocks at ``path`` receive, and what the blocks return."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._parts: list[int] = []
        self._tensors: dict[str, list[tuple[Tensor, list[str]]]] = {}
        self._order: dict[str, list[str]] = {}

    @contextmanager
    def watching(self, blocks: nn.ModuleList) -> Iterator[None]:
        """Inside, passes are noted."""
        with ExitStack() as stack:
            for index, block in enumerate(blocks):
                hook = block.register_forward_hook(
                    lambda _block, _inputs, output: self._parts.append(len(output) if isinstance(output, tuple) else 0)
                )
                stack.callback(hook.remove)
                for name, module in block.named_modules(memo=_others(block)):
                    if isinstance(module, nn.Linear):
                        hook = module.register_forward_pre_hook(
                            lambda _module, inputs, path=f"{self._path}.{index}", name=name: self._see(
                                path, name, inputs[0]
                            )
                        )
                        stack.callback(hook.remove)
            yield

    @property
    def calls(self) -> int:
        """Of linear modules, so far."""
        return sum(map(len, self._order.values()))

    def _see(self, path: str, name: str, received: Tensor) -> None:
        # The tensors are held, so that no other one takes the place of a freed one.
        met = self._tensors.setdefault(path, [])
        same = next((paths for tensor, paths in met if tensor is received), None)
        if same is None:
            met.append((received, same := []))
        same.append(name)
        self._order.setdefault(path, []).append(name)

    def seen(self, blocks: nn.ModuleList, stopped: str) -> Seen:
        """All that was noted."""
        together = {
            f"{path}.{name}": tuple(names) for path, met in self._tensors.items() for _, names in met for name in names
        }
        for index, block in enumerate(blocks):
            path = f"{self._path}.{index}"
            for where, module in block.named_modules():
                if isinstance(module, Experts):
                    _spread(together, self._order.get(path, []), path, where, len(module))
        order = {path: tuple(dict.fromkeys(names)) for path, names in self._order.items()}
        return Seen(together, order, max(self._parts, default=0), stopped)


def _others(block: nn.Module) -> set[nn.Module]:
    """The experts of a block but for the first ones, which are called for all in a pass of shapes."""
    stacks = (module for module in block.modules() if isinstance(module, Experts))
    return {expert for stack in stacks for number, expert in enumerate(stack.children()) if number}


def _spread(groups: dict[str, tuple[str, ...]], order: list[str], path: str, where: str, count: int) -> None:
    """What was seen of the first expert of the ``count`` at ``where`` holds for all of them."""
    first = [name for name in order if name.startswith(f"{where}.0.")]
    for number in range(1, count):
        twin = {name: f"{where}.{number}.{name.removeprefix(f'{where}.0.')}" for name in first}
        groups |= {
            f"{path}.{twin[name]}": tuple(twin.get(other, other) for other in groups[f"{path}.{name}"])
            for name in first
        }
        order += twin.values()
