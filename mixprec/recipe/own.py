"""What a recipe says of a student that learns first, of what the model itself writes, and of shifts of importance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mixprec.calibration.spec import CalibrationSpec, TraceSource
from mixprec.distill.options import DistillOptions
from mixprec.evaluate.engines.base import Sampling
from mixprec.evaluate.spec import EngineSpec
from mixprec.recipe.parts import BaseSpec, Part, RecipesJudge, TracesSpec
from mixprec.traces.annotators import Annotator
from mixprec.traces.prompts import ROLES

if TYPE_CHECKING:
    from mixprec.recipe.schema import Recipe

#: As a source of traces: what the recipe's ``generate`` writes.
OWN = "own:traces"


class TeacherSpec(Part):
    """A teacher whose predictions are learned."""

    id: str = Field(description="bundled name, hub id or folder, of the student's tokenizer")
    revision: str | None = Field(None, description="hub revision; pin it")


class DistillSpec(DistillOptions):
    """The recipe's model learns from a teacher's traces; all other stages see what it became."""

    traces: str = Field(description="what the teacher wrote: bundled:NAME, data:PATH or a path (JSONL)")
    teacher: TeacherSpec | None = Field(None, description="learn its predictions, not the text alone")

    @field_validator("traces")
    @classmethod
    def _of_others(cls, value: str) -> str:
        if value == OWN:
            raise ValueError(f"{OWN}: the student writes them when it has learned; give a teacher's traces")
        return value

    @property
    def options(self) -> DistillOptions:
        """How it is trained."""
        return DistillOptions.model_validate(self.model_dump(include=set(DistillOptions.model_fields)))


class GenerateSpec(Part):
    """The model reasons about prompts; what it writes is the source ``own:traces``."""

    prompts: str = Field(description="prompts or traces (JSONL): bundled:NAME, data:PATH, a path; or benchmark:NAME")
    keys: dict[str, str] = Field({}, description="which key holds id, dataset, prompt and messages")
    files: str | None = Field(None, description="benchmark:NAME: folder of its questions; default: the hub")
    first: int | None = Field(None, ge=1, description="take only so many prompts")
    chat_template: bool = Field(False, description="prompts go in as the user's turn of the model's chat template")
    template: dict[str, Any] = Field({}, description="arguments of the template, as enable_thinking")
    engine: EngineSpec = EngineSpec()
    max_new_tokens: int = Field(32_768, ge=1, description="longest output, in tokens")
    temperature: float = Field(0.6, ge=0, description="of the sampling; 0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="share of the probability that is drawn from")
    seed: int = Field(0, description="draws the tokens")

    @field_validator("keys")
    @classmethod
    def _roles(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(value.keys() - set(ROLES)):
            raise ValueError(f"{unknown[0]}: there are {', '.join(ROLES)}")
        return value

    @model_validator(mode="after")
    def _templated(self) -> GenerateSpec:
        if self.template and not self.chat_template:
            raise ValueError("template: arguments are for a chat template; set chat_template: true")
        return self

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p)


#: Parts of a shift that can be drawn.
ShiftKind = Literal["decreases", "increases", "net"]
#: What a shift calls the model before it learned.
BASE = "base"


def _listed(value: Any) -> Any:
    """One kind stands for a list of one."""
    return (value,) if isinstance(value, str) else value


class ShiftSpec(Part):
    """Importance of every model that the recipe makes, and of others beside it, compared with the original's."""

    traces: Literal["own", "same"] = Field("own", description="own: each model's own traces; same: the original's")
    kind: Annotated[
        tuple[ShiftKind, ...],
        BeforeValidator(_listed, json_schema_input_type=ShiftKind | list[ShiftKind]),
    ] = Field(("decreases",), min_length=1, description="what is drawn: decreases, increases or net, or several")
    models: dict[str, BaseSpec] = Field(
        {}, description="other models with the same modules, by a name: what the original was distilled from"
    )

    @field_validator("kind")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(value)}: a kind stands twice; there are {', '.join(get_args(ShiftKind))}")
        return value

    @field_validator("models")
    @classmethod
    def _folders(cls, value: dict[str, BaseSpec]) -> dict[str, BaseSpec]:
        for name in value:
            if not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or name[0] in ".-":
                raise ValueError(f"{name!r}: use letters, digits, - _ . in names; they become folders")
        return value


class AgreementSpec(Part):
    """The importance's traces annotated once more, and what the difference does to the ranking (Appendix G)."""

    source: str | None = Field(
        None, description="the same traces with another annotation (JSONL); default: traces.source"
    )
    annotator: Annotator = Field("given", description="who annotates; given: the file's own annotations")
    train: tuple[str, ...] = Field((), description="with classifier: annotated traces to learn from too")
    judge: RecipesJudge | None = Field(None, description="a language model annotates, in the place of either")

    def of(self, traces: TracesSpec) -> TracesSpec:
        """The second annotation of ``traces``. Raises pydantic's ValidationError as TracesSpec does."""
        said = self.model_dump(exclude={"source", "judge"})
        return TracesSpec(
            source=self.source or traces.source, preset=traces.preset, first=traces.first, judge=self.judge, **said
        )


def problems(chosen: Recipe) -> Iterator[str]:
    """What of these parts does not fit the others."""
    used = dict(_named(chosen))
    if used and chosen.generate is None:
        yield f"{', '.join(used)}: {OWN} are what generate writes; add generate: {{prompts: …}}"
    for key, annotator in used.items():
        if annotator == "given":
            yield f"{key}: {OWN} have no annotations; set annotator: classifier or cues, or give traces a judge"
    yield from _of_shift(chosen)
    yield from _of_agreement(chosen)


def _of_shift(chosen: Recipe) -> Iterator[str]:
    spec = chosen.shift
    if spec is None:
        return
    if chosen.importance is None or chosen.traces is None:
        yield "shift: importance is what shifts; add importance: {} and traces"
        return
    if not chosen.all_variants and chosen.distill is None and not spec.models:
        yield "shift: there is no second model; add a plan, variants, distill or models"
    for name in spec.models:
        if name in chosen.all_variants or (name == BASE and chosen.distill is not None) or name == "original":
            yield f"shift.models: {name}: a model of this recipe has that name; take another"
    if spec.traces == "own" and chosen.traces.source != OWN:
        yield (
            f"shift.traces: own: the original's importance is of {chosen.traces.source}; set traces: {{source: {OWN}, "
            "…}, or shift: {traces: same}"
        )


def _of_agreement(chosen: Recipe) -> Iterator[str]:
    spec, traces = chosen.agreement, chosen.traces
    if spec is None:
        return
    if chosen.importance is None or traces is None:
        yield "agreement: it is of the importance's traces; add importance: {} and traces"
        return
    try:
        second = spec.of(traces)
    except ValueError as problem:  # what TracesSpec asks of an annotator
        yield f"agreement: {problem.errors()[0]['msg'].removeprefix('Value error, ')}"  # type: ignore[attr-defined]
        return
    if second == traces:
        yield "agreement: the second annotation is the first; give another source, annotator or judge"


def _named(chosen: Recipe) -> Iterator[tuple[str, str | None]]:
    """Where the recipe names OWN, and who annotates there; None where nobody has to."""
    if chosen.traces is not None and chosen.traces.source == OWN:
        yield "traces.source", None if chosen.traces.judge else chosen.traces.annotator
    second = chosen.agreement
    if second is not None and OWN in (second.source, chosen.traces and not second.source and chosen.traces.source):
        yield "agreement", None if second.judge else second.annotator
    evaluate = chosen.evaluate
    if evaluate is not None and evaluate.traces is not None and evaluate.traces.source == OWN:
        yield "evaluate.traces.source", None if evaluate.traces.judge else evaluate.traces.annotator
    for key, spec in calibrations(chosen):
        for source in spec.sources:
            if isinstance(source, TraceSource) and source.traces == OWN:
                yield f"{key}.traces", source.annotator if source.behaviours else None


def calibrations(chosen: Recipe) -> Iterator[tuple[str, CalibrationSpec]]:
    """All calibration data of a recipe, and where it stands."""
    if chosen.compress.calibration is not None:
        yield "compress.calibration", chosen.compress.calibration
    for name, variant in chosen.all_variants.items():
        spec = chosen.tune_of(variant)
        if spec is not None and spec.calibration is not None:
            where = "compress.tune" if variant.tune is None else f"variant {name}: tune"
            yield f"{where}.calibration", spec.calibration


def calibrates_on_own(chosen: Recipe) -> bool:
    """Whether calibration data is known only when the model has written it."""
    sources = [source for _, spec in calibrations(chosen) for source in spec.sources]
    return any(isinstance(source, TraceSource) and source.traces == OWN for source in sources)
