"""What is kept of the modules' outputs: weighted sums over a trace, and spans' gradients, all in one long vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixprec.importance.windows import Batch
from mixprec.models.experts import ExpertLinear

#: Rows of the head's weight that are multiplied at once.
_HEAD_ROWS = 8192


class Layout:
    """Where each watched module's output lies in one long vector of length ``size``; names in the order given."""

    def __init__(self, modules: Mapping[str, nn.Module], widths: Mapping[str, int]) -> None:
        self.modules = dict(modules)
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name in self.modules:
            self.slices[name] = slice(self.size, self.size + widths[name])
            self.size += widths[name]

    @classmethod
    def of_linears(cls, linears: Mapping[str, nn.Linear]) -> Layout:
        """The layout of linear modules' outputs, (sum of d_out,)."""
        return cls(linears, {name: linear.out_features for name, linear in linears.items()})

    @classmethod
    def of_outputs(cls, outputs: Mapping[str, tuple[nn.Module, int]]) -> Layout:
        """The layout of modules that are given with the widths of their outputs."""
        modules = {name: module for name, (module, _) in outputs.items()}
        return cls(modules, {name: width for name, (_, width) in outputs.items()})

    @classmethod
    def joined(cls, layouts: Sequence[Layout]) -> Layout:
        """Several layouts side by side."""
        modules = {name: module for layout in layouts for name, module in layout.modules.items()}
        widths = {name: s.stop - s.start for layout in layouts for name, s in layout.slices.items()}
        return cls(modules, widths)

    def within(self, prefix: str) -> dict[str, nn.Module]:
        """The modules whose names begin with ``prefix``."""
        return {name: module for name, module in self.modules.items() if name.startswith(prefix)}


def accumulation_dtype(model: Any) -> torch.dtype:
    """float32 for everything but float64 models."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


class RowSums:
    """``sums`` (R, layout.size): outputs summed over a trace with (R, tokens) weights."""

    def __init__(self, layout: Layout, rows: Tensor, dtype: torch.dtype) -> None:
        self._layout = layout
        self._rows = rows.to(dtype)
        self.sums = torch.zeros(len(rows), layout.size, dtype=dtype)

    @contextmanager
    def watching(self, modules: Mapping[str, nn.Module], offset: int) -> Iterator[None]:
        """Add the modules' outputs (1, chunk, d) inside the block; the chunk begins at ``offset``."""

        def add(name: str, output: Tensor, tokens: Tensor | None) -> None:
            rows = output.flatten(0, -2)
            where = slice(offset, offset + len(rows)) if tokens is None else offset + tokens.to(self._rows.device)
            weights = self._rows[:, where].to(output.device)
            self.sums[:, self._layout.slices[name]] += (weights @ rows.to(weights.dtype)).cpu()

        with _on_outputs(modules, add):
            yield

    def add_logits(self, projection: Any, norm: str, head: str) -> None:
        """The head is linear, so its sums are those of the final norm, projected: no logits of all tokens needed."""
        normed = self.sums[:, self._layout.slices[norm]]
        parts = [F.linear(normed, rows.to(normed)) for rows in projection.weight.split(_HEAD_ROWS)]
        logits = torch.cat(parts, dim=1)
        if projection.bias is not None:
            logits += self._rows.sum(1, keepdim=True) * projection.bias.to(logits)
        self.sums[:, self._layout.slices[head]] = logits


class Gradients(Protocol):
    """Where the spans' gradients go, batch by batch: kept nowhere else."""

    def add(self, windows: Tensor, found: Mapping[str, Tensor]) -> None:
        """Add to the windows with numbers (W,) the gradients (W, d) of some modules, mean over each window's
        positions. A window that is cut comes several times."""


class SpanGradients:
    """``found``: of every module the gradients (W, d) of a batch's windows, mean over each window's positions."""

    def __init__(self, layout: Layout, batch: Batch, dtype: torch.dtype) -> None:
        self._layout = layout
        self.found: dict[str, Tensor] = {}
        # One product sums every window's positions: (W, Q), 1/length where the position is the window's. The
        # window's last position, which is not in the row, has gradient zero.
        self._owners = F.one_hot(batch.owner, len(batch.number)).T.to(dtype) / batch.lengths[:, None]

    @property
    def dtype(self) -> torch.dtype:
        """What gradients are accumulated in."""
        return self._owners.dtype

    @contextmanager
    def watching(
        self, modules: Mapping[str, nn.Module], where: slice = slice(None), *, before: int = 0
    ) -> Iterator[None]:
        """Take the gradients of outputs that the modules make inside the block, when they are computed.

        The pass is over the batch's positions ``where``, with so many others ``before`` them, which don't count.
        """
        owners = F.pad(self._owners[:, where], (before, 0))

        def watch(name: str, output: Tensor, tokens: Tensor | None) -> None:
            of_rows = owners if tokens is None else owners[:, tokens.to(owners.device)]
            if output.requires_grad:
                output.register_hook(lambda gradient: self._sum(name, gradient.flatten(0, -2), of_rows))

        with _on_outputs(modules, watch):
            yield

    def add(self, name: str, gradient: Tensor, where: slice = slice(None)) -> None:
        """Add a module's gradient (1, positions, d) at the batch's positions ``where``; others than the layout's are
        passed over."""
        if name in self._layout.slices:
            self._sum(name, gradient[0], self._owners[:, where])

    def _sum(self, name: str, gradient: Tensor, owners: Tensor) -> None:
        """Add gradients (n, d) of positions that are the windows' as ``owners`` (W, n) says."""
        sums = owners.to(gradient.device) @ gradient.to(owners.dtype)
        self.found[name] = self.found[name] + sums if name in self.found else sums

    def take(self) -> dict[str, Tensor]:
        """What was found since the last time."""
        found, self.found = self.found, {}
        return found


@contextmanager
def _on_outputs(modules: Mapping[str, nn.Module], call: Callable[[str, Tensor, Tensor | None], None]) -> Iterator[None]:
    """Call ``call(name, output, tokens)`` for every module's output inside the block.

    ``tokens``: of an expert's module, which tokens (n,) of the pass its rows are; None: all of them.
    """

    def hook(module: nn.Module, _inputs: Any, output: Tensor, name: str) -> None:
        call(name, output, module.tokens if isinstance(module, ExpertLinear) else None)

    handles = [module.register_forward_hook(partial(hook, name=name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
