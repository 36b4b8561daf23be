"""Predicted damage: what each linear module costs the model in each format. The budget solver spends bits by it.

A scorer writes one table per target (all tokens, or a behaviour's spans); ``combine`` weighs several into one. Damage
is in the scorer's own unit and only compared within a table; where it can be, that unit is nats of KL per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, field_validator
from pydantic import Strict as Exact

from mixprec.core import artifacts
from mixprec.core.errors import UserError, from_pydantic
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import DROP, KEEP, AnyFormat, parse_format
from mixprec.numerics.sparsity import Sparsity, parse_sparsity
from mixprec.plan.methods import Method, method_for
from mixprec.plan.schema import Strict, Treatment

#: ``target`` of damage on all tokens.
ALL = "all"
#: Scorers whose unit is nats of KL per predicted token.
NATS = ("fisher", "first_order", "measured")
_ARTIFACT: Literal["sensitivity"] = "sensitivity"


class Choice(Strict):
    """What a module may become. As text a format (``w3g64``, ``keep``), a sparsity (``0.5``, ``2:4``: weights in 16
    bits), or both (``w4g64@0.5``)."""

    format: AnyFormat
    sparsity: Sparsity | None = None

    def __str__(self) -> str:
        if self.sparsity is None:
            return str(self.format)
        return str(self.sparsity) if self.format is KEEP else f"{self.format}@{self.sparsity}"

    @property
    def changes(self) -> bool:
        """Whether it changes a module at all: not ``keep`` alone."""
        return self.format is not KEEP or self.sparsity is not None

    def treatment(self, method: Method) -> Treatment:
        """What it does to a module: by ``method``, but for formats that have a method of their own."""
        return Treatment(format=self.format, sparsity=self.sparsity, method=method_for(type(self.format), method))


#: The choice of a routed expert to be left out. Tables have its damage at an expert's last linear: that of all its
#: output being gone.
DROPPED: Final = Choice(format=DROP)


def parse_choice(text: str | float) -> Choice:
    """The choice that ``text`` names; ``str`` of a choice is its text.

    Raises UserError for anything else.
    """
    name = str(text)
    form, at, sparsity = name.partition("@")
    if at:
        return Choice(format=parse_format(form), sparsity=parse_sparsity(sparsity))
    if name[:1].isdigit() or name.startswith("."):
        return Choice(format=KEEP, sparsity=parse_sparsity(name))
    return Choice(format=parse_format(name))


def _choice(value: object) -> Choice:
    if isinstance(value, Choice):
        return value
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is neither a format such as w3g64 nor a sparsity such as 0.5")
    try:
        return parse_choice(value)
    except UserError as problem:
        raise ValueError(str(problem)) from None  # pydantic collects ValueErrors, to report all at once


#: A choice in YAML or JSON: its text there, the value in Python.
ChoiceText = Annotated[
    Choice, BeforeValidator(_choice, json_schema_input_type=str | float), PlainSerializer(str, return_type=str)
]


class Sensitivity(Strict):
    """One table. ``scores``: module address -> choice's text -> damage, finite and at least 0; ``keep`` is 0 unsaid.

    Raises pydantic's ValidationError for NaN, infinite or negative damage, and for choices that don't parse.
    """

    schema_version: Literal[1] = 1
    artifact: Literal["sensitivity"] = _ARTIFACT
    model: str = Field(description="id of the model, for the reader")
    identity: str = Field(description="identity of the model: sha256 over its files, or hub id@revision")
    scorer: str = Field(description="how damage was predicted, such as fisher or measured")
    target: str = Field(ALL, description="all tokens, or the behaviour on whose spans damage counts")
    method: Method = Field(description="the method whose error was scored")
    calibration: str | None = Field(None, description="digest of the calibration tokens; None where none were used")
    settings: dict[str, Any] = Field({}, description="what else the scores depend on")
    scores: dict[str, dict[str, Annotated[float, Exact()]]]

    @field_validator("scores")
    @classmethod
    def _damage(cls, scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        texts: set[str] = set()
        for address, row in scores.items():
            for text, damage in row.items():
                if not (math.isfinite(damage) and damage >= 0):
                    raise ValueError(f"{address}: {text}: {damage} is no damage; it must be finite and at least 0")
            texts |= row.keys()
        for text in texts:
            try:
                known = str(parse_choice(text))
            except UserError as problem:
                raise ValueError(str(problem)) from None
            if known != text:
                raise ValueError(f"choice {text!r} must be written {known!r}")
        return scores

    def damage(self, address: str, choice: Choice) -> float:
        """Damage of a module in ``choice``; 0 where that leaves it alone.

        Raises UserError where the table doesn't have it, with what it has.
        """
        if not choice.changes:
            return 0.0
        row = self.scores.get(address, {})
        if str(choice) not in row:
            raise UserError(
                f"the scores ({self.scorer}, {self.target}) have no damage of {address} in {choice}; "
                f"they have {', '.join(row) or 'nothing for this module'}"
            )
        return row[str(choice)]

    def total(self, damages: Iterable[float]) -> float:
        """The sum of some of its ``damages``. Raises UserError where it is beyond what a number holds."""
        return _total(damages, self.scorer, self.target)

    def digest(self) -> str:
        """Fingerprint of the table, for what is made from it."""
        return artifacts.fingerprint(self.model_dump(mode="json"))


def file_name(scorer: str, target: str = ALL) -> str:
    """Of a table in the folder of sensitivities."""
    return f"{scorer}.json" if target == ALL else f"{scorer}_{target}.json"


def save(path: Path, table: Sensitivity) -> None:
    """Write a table atomically."""
    artifacts.write_json(path, table.model_dump(mode="json"))


def load(path: Path, inventory: Decoder, identity: str | None = None) -> Sensitivity:
    """Read a table made for the model of ``inventory``; ``identity``: that of the model, if known.

    Raises UserError naming the file for broken files, another schema, NaN, missing or unknown modules, another model.
    """
    data = artifacts.read_versioned(path)
    if data.get("artifact") != _ARTIFACT:
        raise UserError(f"{path}: is no table of sensitivities; 'mixprec sensitivity' writes one")
    try:
        table = Sensitivity.model_validate(data)
    except ValidationError as problem:
        raise from_pydantic(problem, str(path), Sensitivity) from None
    check(table, inventory, identity, str(path))
    return table


def check(table: Sensitivity, inventory: Decoder, identity: str | None, where: str) -> None:
    """A table lists the linear modules of its model, and maybe embedding and head.

    Raises UserError naming ``where`` for missing and unknown modules, and for another model's table.
    """
    if identity is not None and table.identity != identity:
        raise UserError(
            f"{where}: the scores are of {table.model} with the identity {table.identity[:12]}…, the model here has "
            f"{identity[:12]}…; score this model, or compress the one that was scored"
        )
    known = {module.address for module in inventory.matrices}
    missing = [module.address for module in inventory.linears if module.address not in table.scores]
    unknown = [address for address in table.scores if address not in known]
    if missing or unknown:
        what = f"lacks {len(missing)} modules, first {missing[0]}" if missing else f"has unknown modules: {unknown[0]}"
        raise UserError(f"{where}: the scores ({table.scorer}) {what}; were they made for another model?")


def combine(tables: Iterable[Sensitivity], weights: Mapping[str, float]) -> Sensitivity:
    """The weighted sum of several targets' damage, target -> weight; what not all tables have is left out.

    Without ``weights`` the only table, or that of all tokens. The tables' unit must be the same, so they come from one
    scorer, one method and one model. Raises UserError where they don't, for weights that are negative, all 0 or of
    targets that are not there.
    """
    by_target: dict[str, Sensitivity] = {}
    for table in tables:
        if (known := by_target.setdefault(table.target, table)) is not table:
            raise UserError(
                f"scores: two tables of {table.target}, by {known.scorer} and {table.scorer}; give one for each target"
            )
    if not weights:
        weights = dict.fromkeys(by_target if len(by_target) == 1 else (ALL,), 1.0)
    unknown = sorted(weights.keys() - by_target.keys())
    if unknown:
        raise UserError(f"weights: no scores for {', '.join(unknown)}; there are {', '.join(by_target)}")
    bad = [name for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)]
    if bad or not any(weights.values()):
        raise UserError(f"weights: {bad[0] if bad else 'all are 0'}: weights are finite, at least 0 and not all 0")
    chosen = [by_target[name] for name in weights]
    kinds = {(table.scorer, table.method, table.identity) for table in chosen}
    if len(kinds) > 1:
        told = "; ".join(f"{scorer}, {method}, {identity[:12]}…" for scorer, method, identity in sorted(kinds))
        raise UserError(f"scores can't be added up, they are of different scorers, methods or models: {told}")
    first = chosen[0]
    if len(chosen) == 1 and weights[first.target] == 1:
        return first
    target = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
    scores = {
        address: {
            text: _total(
                (weights[table.target] * table.scores[address][text] for table in chosen), first.scorer, target
            )
            for text in row
            if all(text in table.scores.get(address, {}) for table in chosen)
        }
        for address, row in first.scores.items()
    }
    return first.model_copy(update={"target": target, "scores": scores})


def _total(damages: Iterable[float], scorer: str, target: str) -> float:
    try:
        found = math.fsum(damages)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise UserError(f"the scores ({scorer}, {target}) are too large: their sum is not finite; scale them down")
    return found
