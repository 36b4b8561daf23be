"""Tiny sources of these tests, and plans for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.plan.methods import Method
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan

#: Every matrix has rows and columns in multiples of 32, as GPTQ's readers want.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def plan_for(folder: Path, default: str, method: Method = "rtn", **rules: Any) -> Plan:
    """A plan for the model in ``folder``; a rule is selector=format, or selector={format, method}."""
    inventory = decoder_of(load_config(str(folder)))
    said = [{"match": match, **(rule if isinstance(rule, dict) else {"format": rule})} for match, rule in rules.items()]
    return build_plan(PlanSpec.model_validate({"default": default, "rules": said}), inventory, str(folder), method)
