"""Apply a plan to a model in memory: the same arithmetic as compress.stream, without a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixprec.compress.module import ModuleReport, OnModule, check_finite, compress_weight
from mixprec.errors import UserError
from mixprec.modules import address, linear_layers
from mixprec.numerics.formats import Keep
from mixprec.plan.schema import Plan


@torch.no_grad()
def apply_plan(
    model: Any, plan: Plan, stored: torch.dtype | None = None, on_module: OnModule | None = None
) -> dict[str, ModuleReport]:
    """Replace the weights of ``model``'s linear modules, in place, by their compressed values.

    ``stored``: the type of the checkpoint's weights, by default the model's own; a model that was loaded in a
    wider one then gets exactly the values that the dense checkpoint holds.
    Raises UserError where the plan's modules are not the model's, or weights are NaN or infinite.
    """
    linears: dict[str, nn.Linear] = {
        address(layer, kind): linear for (layer, kind), linear in linear_layers(model).items()
    }
    if set(linears) != set(plan.modules):
        different = sorted(set(linears) ^ set(plan.modules))
        raise UserError(f"plan for {plan.model}: {different[0]} is not both in the plan and in the model")
    reports = {}
    for name, format in plan.formats.items():
        reports[name] = ModuleReport(str(format), 0.0)
        if not isinstance(format, Keep):
            weight = linears[name].weight
            check_finite(name, weight)
            _, restored, reports[name] = compress_weight(name, weight.to(stored or weight.dtype), format, plan.method)
            weight.copy_(restored)
        if on_module:
            on_module(name, reports[name])
    return reports
