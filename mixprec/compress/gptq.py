"""GPTQ (arXiv 2210.17323): round column by column; later columns take over what rounding changed in the outputs.

With H⁻¹ = Uᵀ U (numerics.hessian), rounding column j by e_j = w_j − ŵ_j is made up for, as well as columns k > j can,
by w_k −= e_j U_jk / U_jj (eq. 2). What remains adds ‖e_j‖² / U_jj² to the loss: 1 / U_jj² is what an error in column j
costs, and so its weight when grids are searched. (diag H, the customary weight, is the cost where nobody compensates.)

Three levels keep the loop fast: a run of columns is solved one by one on contiguous rows of the transposed weights, the
rest of a block follows a run by one matrix product, the rest of the matrix follows a block (the paper's lazy batches).
Blocks end where groups do, so that a grid is always fitted to weights on which no update is outstanding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, groupby

import torch
from torch import Tensor

from mixprec.compress.descent import damped, descend
from mixprec.compress.solving import Solved, Solver, Task
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import Grid, Quantized, Search, fit, level_range, scale_dtype_of
from mixprec.numerics.hessian import Factor
from mixprec.numerics.kernels import operation

#: Columns that are solved one by one before a matrix product updates the rest of their block.
_RUN = 32
#: What grids are searched by where nothing else is said.
DEFAULT_SEARCH = Search()


def gptq(
    weight: Tensor,
    factor: Factor,
    format: Format,
    *,
    block: int = 128,
    static_groups: bool = False,
    search: Search | None = DEFAULT_SEARCH,
    rests: Tensor | None = None,
) -> Quantized:
    """Codes and grid of ``weight`` (out, in), finite, for inputs whose Hessian is behind ``factor``.

    Rows are independent: linears that share their input and format may be stacked. ``block``: columns between two
    updates of the whole matrix. ``search``: how grids are fitted, each column weighted by what its errors cost; None:
    grids span their groups. A grid is fitted to the compensated weights when the loop reaches its group, where the
    factor's order keeps groups together; else, and with ``static_groups``, all are fitted beforehand. Weights of dead
    inputs become 0 first. Codes and groups come back in natural order: no checkpoint needs to know the order.
    ``rests`` (in, out), float32 or wider, gets what rounding took from each compensated weight.
    Where H is diagonal and ``search`` None, the result is that of rtn, bit for bit.

    Raises ValueError where weight and factor don't fit, or block is not positive.
    """
    columns = transposed(weight, factor)
    return solve(columns, factor, format, scale_dtype_of(weight.dtype), block, static_groups, search, rests)


def transposed(weight: Tensor, factor: Factor) -> Tensor:
    """A contiguous copy (in, out) of ``weight`` (out, in) in float32 or wider.

    Raises ValueError where weight and factor don't fit.
    """
    if weight.shape[1] != len(factor.dead):
        raise ValueError(f"weights of shape {tuple(weight.shape)} and a factor for {len(factor.dead)} inputs")
    columns = weight.new_empty(weight.shape[::-1], dtype=torch.promote_types(weight.dtype, torch.float32))
    return columns.copy_(weight.T)


@operation
def solve(
    columns: Tensor,
    factor: Factor,
    format: Format,
    scale_dtype: torch.dtype,
    block: int,
    static_groups: bool,
    search: Search | None,
    rests: Tensor | None = None,
) -> Quantized:
    """gptq of weights that are ``transposed``, which are overwritten."""
    if block < 1:
        raise ValueError(f"blocks need at least one column, not {block}")
    columns.masked_fill_(factor.dead[:, None], 0)
    width, rows = columns.shape
    size, order = format.width(width), factor.order
    groups = (torch.arange(width) if order is None else order.cpu()).div(size, rounding_mode="floor").tolist()
    spans = _spans(groups)
    upper = factor.upper.to(columns.dtype)
    costs = upper.diagonal().square().reciprocal()
    grids = _Grids(columns, format, scale_dtype, search)
    static = static_groups or len(spans) > grids.count
    if static:
        grids.fit_all(columns, costs if order is None else torch.empty_like(costs).index_copy_(0, order, costs))
        spans = [(0, width)]
    if order is not None:
        columns = columns[order]
    codes = torch.empty(rows, width, dtype=torch.int8 if format.symmetric else torch.uint8, device=columns.device)
    buffers = columns.new_empty(2, min(block, width), rows)
    for start, stop in _blocks(spans, block):
        levels, errors = buffers[:, : stop - start]
        unit = upper[start:stop, start:] / upper.diagonal()[start:stop, None]
        for first, last, span in _runs(spans, start, stop):
            if span and not static:
                grids.fit_one(groups[first], columns[slice(*span)], costs[slice(*span)])
            here, rest = slice(first - start, last - start), slice(last - start, stop - start)
            _solve_run(columns[first:last], unit[here, here], grids, groups[first:last], levels[here], errors[here])
            columns[last:stop].addmm_(unit[here, rest].T, errors[here], alpha=-1)
        columns[stop:].addmm_(unit[:, stop - start :].T, errors, alpha=-1)
        where = slice(start, stop) if order is None else order[start:stop]
        codes[:, where] = grids.codes(levels, groups[start:stop]).T
        if rests is not None:
            rests[where] = errors
    return Quantized(codes, grids.result())


def _solve_run(columns: Tensor, unit: Tensor, grids: _Grids, groups: list[int], levels: Tensor, errors: Tensor) -> None:
    """Solve ``columns`` (n, out) one after the other; writes their ``levels``, whole steps from zero, and ``errors``.

    ``unit`` (n, n): upper triangular with ones on the diagonal. A column is brought up to date when its turn comes, by
    one product that reads the errors so far; bringing all columns behind up to date at once would write them as well.
    """
    count = len(columns)
    column_of, earlier = torch.tril_indices(count, count, -1, device=columns.device)
    shares = unit[earlier, column_of].split(list(range(1, count)))
    so_far = errors.T
    for n, (column, level, error) in enumerate(zip(columns.unbind(), levels.unbind(), errors.unbind(), strict=True)):
        if n:
            column.addmv_(so_far.narrow(1, 0, n), shares[n - 1], alpha=-1)
        scale = grids.scales[groups[n]]
        torch.div(column, scale, out=level).round_().clamp_(*grids.ranges[groups[n]])
        torch.addcmul(column, level, scale, value=-1, out=error)


class _Grids:
    """The grids of all groups, group by group: rows of (out,) that a column can be divided by."""

    def __init__(self, columns: Tensor, format: Format, scale_dtype: torch.dtype, search: Search | None) -> None:
        width, rows = columns.shape
        self.count = format.groups(width)
        self._format, self._scale_dtype, self._search = format, scale_dtype, search
        self._stored = torch.empty(self.count, rows, dtype=scale_dtype, device=columns.device)
        self._zeros = None if format.symmetric else torch.empty_like(self._stored, dtype=torch.uint8)
        self.scales = list(columns.new_empty(self.count, rows).unbind())
        self.ranges = [level_range(None, format, columns.dtype)] * self.count

    def fit_all(self, columns: Tensor, costs: Tensor) -> None:
        """From all weights (in, out) in natural order, ``costs`` (in,) of errors in them."""
        self._put(slice(None), self._fit(columns, costs, self._format))

    def fit_one(self, group: int, columns: Tensor, costs: Tensor) -> None:
        """From the weights (size, out) of one group in any order."""
        whole = Format(self._format.bits, WHOLE_ROW, self._format.symmetric)
        self._put(slice(group, group + 1), self._fit(columns, costs, whole))

    def codes(self, levels: Tensor, groups: list[int]) -> Tensor:
        """Codes (n, out) for the levels of columns of these groups; overwrites them."""
        if self._zeros is None:
            return levels.to(torch.int8)
        return levels.add_(self._zeros[groups]).to(torch.uint8)

    def result(self) -> Grid:
        return Grid(self._stored.T.contiguous(), None if self._zeros is None else self._zeros.T.contiguous())

    def _fit(self, columns: Tensor, costs: Tensor, format: Format) -> Grid:
        return fit(columns.T, format, self._scale_dtype, search=self._search, column_weights=costs)

    def _put(self, where: slice, grid: Grid) -> None:
        self._stored[where] = grid.scales.T
        dtype = self.scales[0].dtype
        self.scales[where] = grid.scales.T.to(dtype, memory_format=torch.contiguous_format).unbind()
        if self._zeros is not None and grid.zeros is not None:
            self._zeros[where] = grid.zeros.T
            zeros = self._zeros[where].unbind()
            self.ranges[where] = [level_range(row, self._format, dtype) for row in zeros]


def _spans(groups: list[int]) -> list[tuple[int, int]]:
    """Start and stop of each stretch of equal numbers."""
    ends = list(accumulate(sum(1 for _ in stretch) for _, stretch in groupby(groups)))
    return list(zip([0, *ends], ends, strict=False))


def _blocks(spans: list[tuple[int, int]], block: int) -> Iterator[tuple[int, int]]:
    """Start and stop of blocks of at most ``block`` columns that hold whole spans, or nothing but part of one."""
    start = stop = 0
    for first, last in spans:
        if last - start > block and stop > start:
            yield start, stop
            start = first
        while last - start > block:
            yield start, start + block
            start += block
        stop = last
    yield start, stop


def _runs(spans: list[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int, tuple[int, int] | None]]:
    """Runs of at most _RUN columns inside spans, from ``start`` to ``stop``; with its span, the first run of each."""
    for first, last in spans:
        for column in range(max(first, start), min(last, stop), _RUN):
            yield column, min(column + _RUN, last, stop), (first, last) if column == first else None


def searched(task: Task) -> Search | None:
    """How a task's grids are searched."""
    return DEFAULT_SEARCH if task.options.grid_search else None


def descended(
    task: Task, found: Quantized, factor: Factor, rests: Tensor | None, target: Callable[[], Tensor]
) -> Solved:
    """The result of a pass, after what descent a task asks for; ``target`` (in, out): what the error is least for."""
    if task.options.descent:
        aimed = target().masked_fill_(factor.dead[:, None], 0).T.contiguous()
        hessian = damped(task.inputs.statistics.hessian, factor).to(aimed)
        before = None if rests is None else rests.T
        found, after = descend(found, aimed, hessian, task.grid, task.options.descent, before)
        rests = rests if rests is None else after.T
    return task.rounded(found, task.grid, factor, rests)


def _solve(task: Task) -> Solved:
    factor, rests = task.ordered, task.room_for_rests()
    found = gptq(task.weight, factor, task.grid, search=searched(task), rests=rests)
    return descended(task, found, factor, rests, lambda: transposed(task.weight, factor))


SOLVER = Solver(_solve, stacks=True)
