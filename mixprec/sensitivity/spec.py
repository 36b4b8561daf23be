"""What a recipe says of predicted damage: scorer, candidate formats, where gradients are taken, on how many tokens.

sensitivity:
  scorer: fisher
  formats: [w2g64, w3g64, w4g64, w5g64, w6g64, w8g64]
  at: compressed
  base: w3g64
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mixprec.calibration.spec import Behaviour
from mixprec.core.errors import UserError
from mixprec.plan.methods import Method
from mixprec.plan.rules import Selectors
from mixprec.plan.schema import OutsideName, Strict, Treatment, without_empty
from mixprec.plan.sensitivity import DROPPED, NATS, Choice, ChoiceText

Scorer = Literal[
    "fisher",
    "first_order",
    "measured",
    "importance",
    "hessian_trace",
    "gradient_output",
    "output_error",
    "imatrix",
    "awq",
    "weight_error",
    "updates",
    "reap",
]
#: Scorers that need gradients; those of the first line have a choice of them.
GRADIENT: frozenset[Scorer] = frozenset({"fisher", "first_order", "hessian_trace", "gradient_output", "output_error"})
#: Passages of one sweep: the weights are read twice for all of them.
TOGETHER = 4


class SensitivitySpec(Strict):
    """``sensitivity`` of a recipe."""

    scorer: Scorer = Field("fisher", description="how damage is predicted")
    formats: tuple[ChoiceText, ...] = Field(description="candidates; keep costs nothing and needs no mention")
    method: Method | None = Field(None, description="whose errors are scored; default: compress.method")
    at: Literal["original", "path", "compressed"] = Field(
        "original", description="gradients at the original's weights, half-way, or at the model in format base"
    )
    base: ChoiceText | None = Field(None, description="with at: the format that all modules are in there")
    gradients: Literal["own", "text"] = Field(
        "own", description="of the KL to the model's own distribution, or of the text's cross-entropy"
    )
    samples: int = Field(8, ge=1, description="calibration samples, or traces, that damage is predicted on")
    draws: int = Field(1, ge=1, description="random gradients of each sample for own")
    behaviours: tuple[Behaviour, ...] = Field((), description="tables for these too, on the recipe's traces")
    max_tokens: int = Field(512, ge=2, description="with behaviours: traces are cut here")
    stride: int = Field(2, ge=1, description="measured: every so many-th predicted token is compared")
    seed: int = Field(0, description="of random gradients")
    outside: tuple[OutsideName, ...] = Field((), description="embedding, head: scored too, by measurement")

    @model_serializer(mode="wrap")
    def _without_outside(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Stamps of what scores the blocks alone stay as they were before anything else could be scored."""
        return without_empty(handler(self), "outside")

    @model_validator(mode="after")
    def _consistent(self) -> SensitivitySpec:
        names = [str(choice) for choice in self.formats]
        if not any(choice.changes for choice in self.formats):
            raise ValueError("formats: nothing but keep; name formats to choose from, such as [w3g64, w4g64]")
        if len(set(names)) < len(names):
            raise ValueError(f"formats: {', '.join(names)}: one of them is there twice")
        if (self.at == "original") != (self.base is None):
            raise ValueError(f"at: {self.at} and base: {self.base} don't go together; base says what is compressed")
        if self.outside and self.scorer not in NATS:
            raise ValueError(
                f"outside: {', '.join(self.outside)} are measured in nats of KL, which {self.scorer} is not; take "
                f"{', '.join(NATS)}"
            )
        if self.base is not None and (str(self.base) not in names or self.base == DROPPED):
            raise ValueError(f"base: {self.base} is not among formats that all modules can be in")
        if self.scorer == "reap" and (names != [str(DROPPED)] or self.outside):
            raise ValueError(f"reap scores what experts contribute: formats: [drop] alone, not {', '.join(names)}")
        return self

    @property
    def solves(self) -> bool:
        """Whether modules are solved for in the candidates' formats; who looks at experts' outputs alone doesn't."""
        return self.scorer != "reap"

    def treatments(self, default: Method) -> dict[str, Treatment]:
        """Candidate -> what it does to a module, ``default`` being the method where none is named; without keep.

        Raises UserError for a candidate that the method can't make.
        """
        return treatments(self.formats, self.method or default, "sensitivity.formats")


class AblationSpec(Strict):
    """``ablation`` of a recipe."""

    formats: tuple[ChoiceText, ...] = Field(description="what the modules of a set are put into")
    each: Selectors | None = Field(None, description="every module that this selects, alone")
    sets: dict[str, Selectors] = Field({}, description="name -> modules that are changed together")
    stride: int = Field(2, ge=1, description="every so many-th predicted token is compared")
    resamples: int = Field(200, ge=2, description="bootstrap resamples of the passages, for intervals")

    @model_validator(mode="after")
    def _something(self) -> AblationSpec:
        if self.each is None and not self.sets:
            raise ValueError('nothing to change; give each: "*_*" for all modules one by one, or sets')
        if not all(choice.changes for choice in self.formats) or not self.formats:
            raise ValueError("formats: name formats to put modules into; the model as it is is measured anyway")
        return self


def treatments(choices: Iterable[Choice], method: Method, key: str) -> dict[str, Treatment]:
    """Candidate -> what it does to a module, without keep; by ``method``, unless its format has one of its own.

    Raises UserError naming ``key`` for a candidate that the method can't make.
    """
    found = {}
    for choice in choices:
        if choice.changes:
            treatment = choice.treatment(method)
            if problem := treatment.problem():
                raise UserError(f"{key}: {choice}: {problem}")
            found[str(choice)] = treatment
    return found
