"""plan.json: every linear module of a model with its format, one line each; from rules or by hand."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from mixprec import artifacts
from mixprec.errors import UserError, from_pydantic
from mixprec.modules import Inventory
from mixprec.numerics.formats import Format, Keep, parse_format

#: Names of the compression methods a plan may ask for.
Method = Literal["rtn"]


def _format(value: Any) -> Any:
    if isinstance(value, Format | Keep):
        return value
    try:
        return parse_format(str(value))
    except UserError as problem:
        raise ValueError(str(problem)) from None  # pydantic collects ValueErrors, to report all at once


#: A format in YAML or JSON: its text there, the value in Python.
FormatText = Annotated[Format | Keep, BeforeValidator(_format), PlainSerializer(str, return_type=str)]


class Strict(BaseModel):
    """Unknown keys are errors, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModulePlan(Strict):
    """What happens to one module, and ``why``: the rule that said so, for the reader."""

    format: FormatText
    why: str = ""


class Plan(Strict):
    """Module address -> format, for all linear modules of ``model``, compressed by ``method``."""

    schema_version: Literal[1] = 1
    model: str
    method: Method
    modules: dict[str, ModulePlan]

    @property
    def formats(self) -> dict[str, Format | Keep]:
        """Address -> format, in order."""
        return {address: module.format for address, module in self.modules.items()}


def dumps(plan: Plan) -> str:
    """The text of plan.json: JSON with one line per module, so that plans diff and edit well."""
    data = plan.model_dump(mode="json")
    lines = [
        f"    {_json(address)}: {_json({key: value for key, value in module.items() if value != ''})}"
        for address, module in data.pop("modules").items()
    ]
    head = [f"  {_json(key)}: {_json(value)}," for key, value in data.items()]
    return "\n".join(["{", *head, '  "modules": {', ",\n".join(lines), "  }", "}"]) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def save_plan(path: Path, plan: Plan) -> None:
    """Write plan.json atomically."""
    artifacts.write_text(path, dumps(plan))


def load_plan(path: Path, inventory: Inventory) -> Plan:
    """Read plan.json, made for the model of ``inventory``.

    Raises UserError naming the file and all wrong keys, formats and modules at once.
    """
    try:
        plan = Plan.model_validate(artifacts.read_json(path))
    except ValidationError as problem:
        raise from_pydantic(problem, str(path), Plan) from None
    check_modules(plan, inventory, str(path))
    return plan


def check_modules(plan: Plan, inventory: Inventory, where: str) -> None:
    """A plan lists exactly the linear modules of its model.

    Raises UserError naming ``where``, modules the model doesn't have, and modules the plan doesn't have.
    """
    known = [module.address for module in inventory.linears]
    unknown = [address for address in plan.modules if address not in set(known)]
    missing = [address for address in known if address not in plan.modules]
    problems = []
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        problems.append(f"modules the model doesn't have: {_some(unknown)}{hint}")
    if missing:
        problems.append(f'modules without a format: {_some(missing)} (leave them with {{"format": "keep"}})')
    if problems:
        raise UserError(f"{where}: modules: {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
