"""GPTQ as a float64 loop over columns, for inputs that plain hooks gather in transformers' own forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixprec.compress.options import SolveOptions
from mixprec.models.decoder import Group
from mixprec.models.experts import Experts
from mixprec.models.weights import blocks_of, map_in, module_of
from mixprec.numerics.formats import WHOLE_ROW, Format, parse_format
from mixprec.numerics.groupwise import Quantized, Search, dequantize, encode, fit, scale_dtype_of
from mixprec.numerics.hessian import factorize

FORMAT = parse_format("w3g16")


@torch.no_grad()
def expected_weights(model: Any, samples: Tensor, options: SolveOptions) -> dict[str, tuple[Tensor, Tensor]]:
    """Address -> new weight (out, in) and its steps (out, in), of the first block's linears, group by group.

    ``model`` is transformers' own, in float64; it gets the weights, so that later groups have the inputs behind them.
    Experts that no token is sent to are left out.
    """
    block, known = blocks_of(model)[0], map_in(model).blocks[0]
    stacks = {name: module for name, module in block.named_modules() if hasattr(module, "has_gate")}
    views = {name: Experts(stacked) for name, stacked in stacks.items()}  # of the stacks' memory
    found = {}
    for group in known.groups:
        if group.routed is None:
            inputs = _received(model, samples, module_of(block, group[0])).flatten(0, -2)
        else:
            inputs = _of_expert(model, samples, stacks[group.routed], views[group.routed], group)
        if not len(inputs):
            continue
        for linear in group:
            if group.routed is None:
                module: Any = module_of(block, linear)
            else:
                module = views[group.routed].get_submodule(linear.module.removeprefix(f"{group.routed}."))
            weight, step = _solved(module.weight.double(), inputs.double(), options)
            found[linear.address] = (weight, step)
            module.weight.copy_(weight)
    return found


def _received(model: Any, samples: Tensor, module: Any) -> Tensor:
    """The first argument of a module in a forward pass over all samples."""
    return _arguments(model, samples, module)[0]  # type: ignore[no-any-return]


def _arguments(model: Any, samples: Tensor, module: Any) -> Any:
    seen: list[Any] = []
    handle = module.register_forward_pre_hook(lambda _module, given: seen.append(given))
    model(input_ids=samples)
    handle.remove()
    return seen[0]


def _of_expert(model: Any, samples: Tensor, stacked: Any, views: Experts, group: Group) -> Tensor:
    """What one expert's matrices of a group receive: the tokens that the router sends there, and what it makes of
    them."""
    expert = group[0].expert
    assert expert is not None
    hidden, chosen, *_ = _arguments(model, samples, stacked)
    inputs = hidden[(chosen == expert).any(-1)]
    return views.gated(expert, inputs) if group[0].kind == "down" else inputs


def _solved(weight: Tensor, inputs: Tensor, options: SolveOptions) -> tuple[Tensor, Tensor]:
    """GPTQ (arXiv 2210.17323) with explicit inverses: the weight's new values and steps (out, in)."""
    size = FORMAT.width(weight.shape[1])
    hessian = inputs.T @ inputs / len(inputs)
    factor = factorize(hessian, damping=options.damping, act_order=True, group_size=size)
    order = list(range(len(hessian))) if factor.order is None else factor.order.tolist()
    work = weight.clone()
    work[:, factor.dead] = 0
    alive = ~factor.dead
    hessian.diagonal()[alive] += factor.damping * hessian.diagonal()[alive].mean()
    hessian.diagonal()[~alive] = 1
    inverse, inverses = torch.linalg.inv(hessian), []
    costs = torch.zeros(len(hessian), dtype=work.dtype)
    for column in order:
        inverses.append(inverse)
        costs[column] = 1 / inverse[column, column]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    whole, made, steps = Format(FORMAT.bits, WHOLE_ROW, FORMAT.symmetric), torch.empty_like(work), work.clone()
    grids: dict[int, Any] = {}
    for step, column in enumerate(order):
        group = slice(column // size * size, column // size * size + size)
        if group.start not in grids:
            dtype = scale_dtype_of(work.dtype)
            grids[group.start] = fit(
                work[:, group],
                whole,
                dtype,
                search=Search() if options.grid_search else None,
                column_weights=costs[group],
            )
        grid = grids[group.start]
        code = encode(work[:, [column]], grid, whole)
        made[:, column] = dequantize(Quantized(code, grid), whole, work.dtype)[:, 0]
        steps[:, column] = grid.scales[:, 0].double().abs()
        rest, error = order[step + 1 :], work[:, column] - made[:, column]
        work[:, rest] -= torch.outer(error, inverses[step][column, rest]) / inverses[step][column, column]
    return made, steps
