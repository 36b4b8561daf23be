"""plan.json: every linear module of a model with its format, one line each; from rules or by hand.

Embedding and head may have a line too. Without one they stay as they are.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError, model_validator

from mixprec.core import artifacts, seals
from mixprec.core.errors import UserError, from_pydantic
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import (
    GGML,
    AffineFormat,
    AnyFormat,
    CodebookFormat,
    Drop,
    Format,
    GgmlFormat,
    Keep,
    fitting,
    parse_format,
    parse_ggml,
)
from mixprec.numerics.sparsity import Sparsity, parse_sparsity
from mixprec.plan.dropping import check_dropped, kept, without
from mixprec.plan.methods import METHODS, Method, pruners

#: At most so many names are compared with one that no module has.
_LOOKED_AT = 2_000


def _parsed(parse: Callable[[str], Any], *kinds: type, written: Any = str) -> BeforeValidator:
    """``written``: what it is in YAML or JSON, for the schema."""

    def validate(value: Any) -> Any:
        if value is None or isinstance(value, kinds):
            return value
        try:
            return parse(str(value))
        except UserError as problem:
            raise ValueError(str(problem)) from None  # pydantic collects ValueErrors, to report all at once

    return BeforeValidator(validate, json_schema_input_type=written)


#: Formats and sparsities in YAML or JSON: their text there, the values in Python.
FormatText = Annotated[
    AnyFormat,
    _parsed(parse_format, Format, AffineFormat, CodebookFormat, GgmlFormat, Keep, Drop),
    PlainSerializer(str, return_type=str),
]
GgmlText = Annotated[GgmlFormat, _parsed(parse_ggml, GgmlFormat), PlainSerializer(str, return_type=str)]
SparsityText = Annotated[
    Sparsity, _parsed(parse_sparsity, Sparsity, written=str | float), PlainSerializer(str, return_type=str)
]


#: What lies outside the blocks, by the words of rules.
OutsideName = Literal["embedding", "head"]


def without_empty(dumped: dict[str, Any], key: str) -> dict[str, Any]:
    """A serialised value without ``key`` where that is empty."""
    return dumped if dumped.get(key) else {name: value for name, value in dumped.items() if name != key}


class Strict(BaseModel):
    """Unknown keys are errors, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Treatment(Strict):
    """What happens to a module: its weights' ``format``, the share of them that becomes zero, and how that is done."""

    format: FormatText
    sparsity: SparsityText | None = None
    method: Method

    @property
    def changes(self) -> bool:
        """Whether the module's weights change at all."""
        return not isinstance(self.format, Keep) or self.sparsity is not None

    def problem(self) -> str | None:
        """Why no method can do this, or None."""
        if not self.changes:
            return None
        if isinstance(self.format, Drop):
            return None if self.sparsity is None else "what is dropped has no sparsity; leave one of the two out"
        method, rounds, kind = METHODS[self.method], not isinstance(self.format, Keep), type(self.format)
        for other in METHODS.values():
            if rounds and other.apart and (other is method) != (kind in other.formats):
                return f"format {self.format} and method {self.method} don't go together; {other.apart}"
        if self.sparsity is not None and not method.prunes:
            return f"method {self.method} sets no weights to zero; sparsity needs {', '.join(pruners())}"
        if self.sparsity is None and method.prunes:
            return f"method {self.method} needs a sparsity, such as 0.5 or 2:4"
        if rounds and method.formats and kind not in method.formats:
            able = ", ".join(name for name, each in METHODS.items() if kind in each.formats)
            return f"method {self.method} does not make {self.format}; {able} does"
        if rounds and kind not in method.formats:
            both = ", ".join(name for name, each in pruners().items() if kind in each.formats)
            return f"method {self.method} does not quantize; {both} prunes and quantizes jointly"
        return None

    @property
    def on_original_inputs(self) -> Treatment:
        """What this is where a linear's inputs are those of the uncompressed model."""
        other = METHODS[self.method].on_original_inputs
        return self if other is None else self.model_copy(update={"method": other})


class ModulePlan(Strict):
    """One module's line in a plan; ``method`` where it isn't the plan's. ``why``: which rule said so."""

    format: FormatText
    sparsity: SparsityText | None = None
    method: Method | None = None
    why: str = ""


class Plan(Strict):
    """Module address -> what happens to it, for all linear modules of ``model``, and for its embedding and head where
    they are not left alone; by ``method`` unless it says else."""

    schema_version: Literal[1] = 1
    model: str
    method: Method
    modules: dict[str, ModulePlan]

    @model_validator(mode="after")
    def _possible(self) -> Plan:
        alike = {id(found): (address, found) for address, found in self.treatments.items()}
        problems = {problem: address for address, found in alike.values() if (problem := found.problem()) is not None}
        if problems:
            raise ValueError("; ".join(f"{address}: {problem}" for problem, address in problems.items()))
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Plan:
        """As pydantic's; what follows from the fields is worked out again."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("treatments", "formats", "changed", "dropped"):
            copied.__dict__.pop(name, None)
        return copied

    @cached_property
    def treatments(self) -> dict[str, Treatment]:
        """Address -> what happens to the module, in order; modules that are treated alike share it."""
        known: dict[tuple[Any, ...], Treatment] = {}
        found = {}
        for address, module in self.modules.items():
            said = (module.format, module.sparsity, module.method or self.method)
            if said not in known:
                known[said] = Treatment(format=said[0], sparsity=said[1], method=said[2])
            found[address] = known[said]
        return found

    @cached_property
    def formats(self) -> dict[str, AnyFormat]:
        """Address -> format, in order."""
        return {address: module.format for address, module in self.modules.items()}

    @cached_property
    def changed(self) -> list[str]:
        """Addresses of the modules that are not left alone."""
        return [address for address, found in self.treatments.items() if found.changes]

    @property
    def methods(self) -> set[Method]:
        """The methods that change modules."""
        return {self.treatments[address].method for address in self.changed if address not in self.dropped}

    @cached_property
    def dropped(self) -> frozenset[str]:
        """Addresses of the modules of experts that are left out."""
        return frozenset(address for address, format in self.formats.items() if isinstance(format, Drop))


def dumps(plan: Plan) -> str:
    """The text of plan.json: JSON with one line per module, so that plans diff and edit well; its seal is the last
    line."""
    data = plan.model_dump(mode="json")
    data["modules"] = {
        address: {key: value for key, value in module.items() if value not in ("", None)}
        for address, module in data["modules"].items()
    }
    whole = seals.sealed(data)
    modules = [f"    {_json(address)}: {_json(module)}" for address, module in whole.pop("modules").items()]
    lines = [f"  {_json(key)}: {_json(value)}" for key, value in whole.items()]
    lines.insert(-2, "\n".join(['  "modules": {', ",\n".join(modules), "  }"]))
    return "\n".join(["{", ",\n".join(lines), "}"]) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def save_plan(path: Path, plan: Plan) -> None:
    """Write plan.json atomically."""
    artifacts.write_text(path, dumps(plan))


def load_plan(path: Path, inventory: Decoder) -> Plan:
    """Read plan.json, made for the model of ``inventory``; that it was edited is said.

    Raises UserError naming the file and all wrong keys, formats and modules at once.
    """
    try:
        plan = Plan.model_validate(artifacts.read_edited(path))
    except ValidationError as problem:
        raise from_pydantic(problem, str(path), Plan) from None
    check_modules(plan, inventory, str(path))
    return plan


def check_modules(plan: Plan, inventory: Decoder, where: str) -> None:
    """A plan lists the linear modules of its model, maybe embedding and head, in formats that fit their rows.

    Raises UserError naming ``where``, modules the model doesn't have, modules the plan doesn't have, types of
    llama.cpp whose blocks do not divide a row, and experts that can't be dropped.
    """
    known = dict.fromkeys(module.address for module in inventory.matrices)
    unknown = [address for address in plan.modules if address not in known]
    missing = [module.address for module in inventory.linears if module.address not in plan.modules]
    problems = []
    if inventory.tied and inventory.head in unknown:
        problems.append(f"{inventory.head} is {inventory.embedding} in this model: give that one line for both")
        unknown.remove(inventory.head)
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(known)[:_LOOKED_AT], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        problems.append(f"modules the model doesn't have: {_some(unknown)}{hint}")
    if missing:
        problems.append(f'modules without a format: {_some(missing)} (leave them with {{"format": "keep"}})')
    if problems:
        raise UserError(f"{where}: modules: {'; '.join(problems)}")
    for module in inventory.planned(plan.modules):
        format = plan.modules[module.address].format
        if isinstance(format, GgmlFormat) and not format.fits(module.in_features):
            raise UserError(f"{where}: modules: {module.address}: {unfit(format, module.in_features)}")
    check_dropped(plan.dropped, inventory, where)


def without_dropped(plan: Plan, inventory: Decoder) -> Plan:
    """``plan`` for the model that has no dropped experts: theirs numbered anew, all other lines as they are."""
    if not plan.dropped:
        return plan
    renamed = without(inventory, kept(plan.dropped, inventory))
    modules = {new: plan.modules[old] for old, new in renamed if old in plan.modules}
    return Plan(model=plan.model, method=plan.method, modules=modules)


def with_outside(plan: Plan, inventory: Decoder, lines: Mapping[str, ModulePlan]) -> Plan:
    """``plan`` with ``lines`` for embedding and head, by these names; one that changes nothing stays as it is.

    Raises UserError for the head of a model that has none of its own, and where the plan says something else.
    """
    if not plan.changed or not lines:
        return plan
    modules = dict(plan.modules)
    for name, line in lines.items():
        if name == "head" and inventory.tied:
            raise UserError(f"{line.why}: {line.format}: this model's head is its embedding; say it of the embedding")
        address = inventory.outside_named[name].address
        known = modules.setdefault(address, line)
        if known is not line:
            raise UserError(f"{line.why}: {line.format}: the plan has {known.format} for it ({known.why}); say it once")
    ordered = {linear.address: modules[linear.address] for linear in inventory.planned(modules)}
    return Plan(model=plan.model, method=plan.method, modules=ordered)


def fitted(plan: ModulePlan, columns: int) -> ModulePlan:
    """``plan``, with the type that llama.cpp takes where its own does not fit rows of ``columns`` weights."""
    other = fitting(plan.format, columns)
    if other == plan.format or not isinstance(plan.format, GgmlFormat):
        return plan
    why = f"{plan.why}; {plan.format} wants rows of a multiple of {plan.format.layout.block}, these have {columns}"
    return plan.model_copy(update={"format": other, "why": why})


def unfit(format: GgmlFormat, columns: int) -> str:
    """What to do where a row of ``columns`` weights can't be divided into the blocks of ``format``."""
    near = sorted(GGML, key=lambda name: abs(GgmlFormat(name).effective_bits - format.effective_bits))
    fitting = [name for name in near if GgmlFormat(name).fits(columns)][:3]
    return (
        f"{format} wants rows of a multiple of {format.layout.block} weights, these have {columns}; "
        f"the nearest that fit: {', '.join([*fitting, 'keep'])}"
    )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
