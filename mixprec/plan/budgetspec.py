"""What a recipe says of a budget: how large a plan may be, from what, by which scores, and how it is improved."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mixprec.plan.schema import OutsideName, Strict, without_empty
from mixprec.plan.sensitivity import DROPPED, Choice, ChoiceText

#: How a budget is spent: ``optimal`` by the scores, the others as controls that know nothing of them, or the opposite.
Allocation = Literal["optimal", "uniform", "random", "last_layers", "inverse", "llama_cpp"]
#: ``scores`` that the recipe itself makes.
SENSITIVITY, IMPORTANCE = "sensitivity", "importance"
#: Ways to say how large a plan may be.
MEASURES = ("effective_bits", "active_bits", "code_bits", "bytes", "file_bytes", "sparsity")


def _sources(value: object) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{value!r}: write sensitivity, importance, a path, or a list of paths")
    return tuple(listed)


class ExchangeSpec(Strict):
    """``budget.exchange``: measure joint plans and keep what helps (joint/exchange.py)."""

    model_config = ConfigDict(allow_inf_nan=False)

    samples: int = Field(8, ge=2, description="passages that plans are measured on, behind those that scores are from")
    stride: int = Field(2, ge=1, description="every so many-th predicted token is compared")
    proposals: int = Field(40, ge=1, description="the most plans that are measured")
    patience: int = Field(8, ge=1, description="exchanges refused in a row after which none is taken to help")
    margin: float = Field(1.0, ge=0, description="standard errors by which a plan must be better")
    minutes: float | None = Field(None, gt=0, description="stop after this time; the plan then depends on the machine")


class BudgetSpec(Strict):
    """``plan.budget`` of a recipe: how large, from what, and by which scores."""

    model_config = ConfigDict(allow_inf_nan=False)

    effective_bits: float | None = Field(None, gt=0, description="bits per weight of the linears, scales included")
    active_bits: float | None = Field(
        None, gt=0, description="the same of the weights that a token meets: of experts, those that it is sent to"
    )
    code_bits: float | None = Field(None, gt=0, description="bits per weight of the codes alone")
    bytes: int | None = Field(None, gt=0, description="bytes of the whole packed model")
    file_bytes: int | None = Field(None, gt=0, description="bytes of the files in the recipe's checkpoint.format")
    sparsity: float | None = Field(None, gt=0, lt=1, description="share of the linears' weights that become zero")
    candidates: tuple[ChoiceText, ...] = Field(min_length=2, description="formats and sparsities to choose from")
    scores: Annotated[tuple[str, ...], BeforeValidator(_sources, json_schema_input_type=str | list[str])] = Field(
        (SENSITIVITY,), description="sensitivity or importance, made by the recipe's parts of these names, or tables"
    )
    weights: dict[str, float] = Field({}, description="target of the scores -> weight in the sum; default: all")
    tie: Literal["fused"] | None = Field(
        None, description="fused: q, k, v get one format, and so do gate and up, and all experts of a layer"
    )
    pin: dict[str, ChoiceText] = Field({}, description="selector -> what its modules get whatever the scores say")
    allocation: Allocation = Field("optimal", description="optimal, or a control of the same size")
    seed: int = Field(0, description="allocation random: which draw")
    outside: tuple[OutsideName, ...] = Field(
        (), description="embedding, head: they get candidates too; with bytes or file_bytes"
    )
    exchange: ExchangeSpec | None = Field(None, description="improve the plan by measuring joint plans")

    @model_serializer(mode="wrap")
    def _without_outside(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Stamps of budgets for the blocks alone stay as they were before there were others."""
        return without_empty(handler(self), "outside")

    @model_validator(mode="after")
    def _consistent(self) -> BudgetSpec:
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a budget has one size, {', '.join(MEASURES)}; this one has {', '.join(given) or 'none'}")
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("a candidate is there twice")
        if DROPPED in self.pin.values():
            raise ValueError("pin: drop: experts are dropped as a candidate, as many of each layer, or by rules")
        if DROPPED in self.candidates:
            self._check_dropping()
        if self.outside and self.measure not in ("bytes", "file_bytes"):
            raise ValueError(
                f"outside: {self.measure} counts the blocks' linears alone; give bytes or file_bytes, or pin "
                f"{' and '.join(self.outside)}"
            )
        if self.exchange is not None and self.outside:
            raise ValueError("exchange measures plans of the blocks; leave out outside, or pin what it names")
        if self.exchange is not None and self.file_bytes is not None:
            raise ValueError("exchange keeps budgets that add up over modules; give bytes in the place of file_bytes")
        if self.exchange is not None and (self.allocation != "optimal" or self.scores == (IMPORTANCE,)):
            raise ValueError("exchange starts from allocation optimal by scores of sensitivity")
        return self

    def _check_dropping(self) -> None:
        """Raises ValueError for what can't be decided where experts may be dropped."""
        if self.measure in ("active_bits", "file_bytes"):
            other = {"active_bits": "a token meets as many experts as before; give effective_bits or bytes"}
            raise ValueError(f"drop: {self.measure}: {other.get(self.measure, 'give bytes in its place')}")
        if self.allocation != "optimal":
            raise ValueError(f"drop: allocation {self.allocation} says nothing of which experts go; only optimal does")
        if self.exchange is not None:
            raise ValueError("drop: exchange measures plans of one model; leave out exchange, or drop among candidates")

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The candidates of a module that stays."""
        return tuple(choice for choice in self.candidates if choice != DROPPED)

    @property
    def scored(self) -> tuple[Choice, ...]:
        """The candidates whose damage decides anything: not that of the only one of modules that stay."""
        free = self.choices if len(self.choices) > 1 else ()
        return tuple(choice for choice in self.candidates if choice.changes and (choice in free or choice == DROPPED))

    @property
    def measure(self) -> str:
        """Which of MEASURES limits the plan."""
        return next(name for name in MEASURES if getattr(self, name) is not None)

    @property
    def size(self) -> Fraction:
        """The limit, in the measure's unit, as it is written: 3.3 x 100 is 330."""
        return Fraction(self.limit)

    @property
    def limit(self) -> str:
        """The limit as text, all of it."""
        return str(getattr(self, self.measure)).removesuffix(".0")

    @property
    def needs_scores(self) -> bool:
        """Whether the allocation looks at scores at all."""
        return self.allocation in ("optimal", "inverse")

    def __str__(self) -> str:
        how = self.allocation if self.allocation != "random" else f"random, seed {self.seed}"
        return f"budget {self.measure} {self.limit}, {how}"
