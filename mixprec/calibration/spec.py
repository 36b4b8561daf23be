"""What a recipe says of calibration data: sources, how many samples of how many tokens, and the seed.

compress:
  calibration:
    sources:
      - {text: data:calibration/wikitext2_tokenized_valid.txt, share: 1}
      - {traces: data:traces.jsonl, share: 1, behaviours: {backtracking: 4}}
    samples: 128
    tokens: 512

A single source may stand without the list: ``calibration: {text: notes.txt, samples: 32}``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from mixprec.traces import annotators
from mixprec.traces.annotate import Rule
from mixprec.traces.annotators import Annotator
from mixprec.traces.store import HELD_OUT

#: What a token's factor can depend on; the same six as in traces.spans.ALL_BEHAVIOURS.
Behaviour = Literal[
    "backtracking", "uncertainty_estimation", "example_testing", "adding_knowledge", "initializing", "deduction"
]
Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]

WHY_HELD_OUT = "it is what compressed models are evaluated on, so it can't calibrate them; take bundled:attribution"


class Strict(BaseModel):
    """Unknown keys are errors, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Source(Strict):
    share: float = Field(1.0, gt=0, allow_inf_nan=False, description="samples, relative to the other sources' shares")
    loops: Literal["skip", "keep"] = Field("skip", description="samples that repeat themselves, as looping models do")


class TextSource(_Source):
    """A text file."""

    text: str = Field(description="data:PATH or a path to a UTF-8 text file")

    @field_validator("text")
    @classmethod
    def _not_bundled(cls, value: str) -> str:
        if value == HELD_OUT:
            raise ValueError(f"{value}: {WHY_HELD_OUT} as traces")
        if value.startswith("bundled:"):
            raise ValueError(f"{value}: no such text; bundled for calibration is traces: bundled:attribution")
        return value

    def __str__(self) -> str:
        return f"text {self.text}"


class TraceSource(_Source):
    """Traces, weighted by behaviour or not."""

    traces: str = Field(description="bundled:NAME, data:PATH or a path to a JSONL file")
    pack: bool = Field(True, description="samples run across traces; else each lies within one")
    behaviours: dict[Behaviour, Factor] = Field({}, description="weight of the tokens in a behaviour's spans")
    others: Factor = Field(1.0, description="with behaviours: weight of all other tokens; 0 leaves them out")
    preset: Rule = Field("paper", description="span rule: paper, released or aligned")
    annotator: Annotator = Field("given", description=annotators.DESCRIPTION)

    @field_validator("traces")
    @classmethod
    def _not_held_out(cls, value: str) -> str:
        if value == HELD_OUT:
            raise ValueError(f"{value}: {WHY_HELD_OUT}")
        return value

    @model_validator(mode="after")
    def _weighted(self) -> TraceSource:
        if not self.behaviours and self.others != 1:
            raise ValueError(f"others: {self.others:g} weighs tokens outside of behaviours; name some behaviours")
        if self.behaviours and not any(self.behaviours.values()) and self.others == 0:
            raise ValueError("every weight is 0, nothing is left; give a behaviour or others more than 0")
        return self

    def __str__(self) -> str:
        return f"traces {self.traces}"


class HubSource(_Source):
    """A column of a hub dataset at a pinned revision."""

    dataset: str = Field(description="owner/name on the hub")
    revision: str = Field(description="the commit, 40 hexadecimal digits")
    name: str | None = Field(None, description="configuration of the dataset")
    split: str = Field("train", min_length=1, description="split or a part of it, as train[:5000]")
    column: str = Field("text", min_length=1, description="the column that holds text")
    files: tuple[str, ...] = Field((), description="only these files of the dataset")

    @field_validator("dataset")
    @classmethod
    def _owned(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value):
            raise ValueError(f"{value!r} is no hub id; write owner/name, or text: PATH for a file")
        return value

    @field_validator("revision")
    @classmethod
    def _pinned(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", value):
            raise ValueError(
                f"{value!r} is no commit; branches and tags move, so pin the 40 hexadecimal digits that the dataset's "
                "page shows under Files, History"
            )
        return value

    @field_validator("files")
    @classmethod
    def _inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            # The revision pins the dataset's own files only.
            if not name or "://" in name or name.startswith(("/", "~")) or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} is no file of the dataset; write its path in the dataset's repository")
        return value

    def __str__(self) -> str:
        return f"dataset {self.dataset}"


_KINDS: dict[str, type[_Source]] = {"text": TextSource, "traces": TraceSource, "dataset": HubSource}


def _kind_of_source(value: Any) -> str | None:
    if isinstance(value, Strict):
        return type(value).__name__
    keys = value if isinstance(value, dict) else ()
    return next((kind.__name__ for key, kind in _KINDS.items() if key in keys), None)


#: Tags are the classes' names, which are no keys, so that errors.from_pydantic leaves them out of paths.
Source = Annotated[
    Annotated[TextSource, Tag("TextSource")]
    | Annotated[TraceSource, Tag("TraceSource")]
    | Annotated[HubSource, Tag("HubSource")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source",
        custom_error_message="a source is {text: PATH}, {traces: PATH} or {dataset: owner/name, revision: COMMIT}",
    ),
]


class CalibrationSpec(Strict):
    """``compress.calibration`` of a recipe."""

    sources: tuple[Source, ...] = Field(description="text, traces, hub datasets")
    samples: int = Field(128, ge=1, description="samples in all")
    tokens: int = Field(512, ge=2, description="tokens of every sample, at most the model's context")
    seed: int = Field(0, description="draws the samples")

    @field_validator("sources")
    @classmethod
    def _some(cls, value: tuple[Source, ...]) -> tuple[Source, ...]:
        if not value:
            raise ValueError("no sources; give a text, traces or a dataset")
        return value

    @property
    def counts(self) -> list[int]:
        """Samples that each source gives."""
        return apportion(self.samples, [source.share for source in self.sources])

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Either form: ``sources``, or one source's keys beside the others."""
        long = handler.resolve_ref_schema(handler(core))
        own = {name: each for name, each in long["properties"].items() if name != "sources"}
        forms = [dict(long)]
        for kind in _KINDS.values():
            one = handler.resolve_ref_schema(handler(kind.__pydantic_core_schema__))
            forms.append({**one, "properties": one["properties"] | own, "title": f"{kind.__name__} alone"})
        return {"anyOf": forms, "description": long.get("description", "")}

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, data: Any) -> Any:
        """The short form: a source's keys beside ``samples``, ``tokens`` and ``seed``."""
        if not isinstance(data, dict) or not any(kind in data for kind in _KINDS):
            return data
        if "sources" in data:
            kind = next(kind for kind in _KINDS if kind in data)
            raise ValueError(f"{kind} and sources exclude one another; move {kind} into the list")
        own = [key for key in data if _is_own(key)]
        source = {key: value for key, value in data.items() if key not in own}
        return {"sources": [source]} | {key: data[key] for key in own}


def _is_own(key: Any) -> bool:
    """Whether a key of the short form, maybe misspelt, is the calibration's and not its source's."""
    ours = list(CalibrationSpec.model_fields)
    theirs = [name for kind in _KINDS.values() for name in kind.model_fields]
    near = difflib.get_close_matches(str(key), [*ours, *theirs], n=1)
    return key not in theirs and bool(near) and near[0] in ours


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` in whole numbers proportional to ``shares``: largest remainders, of equal ones the earlier."""
    exact = [Fraction(str(share)) for share in shares]
    quotas = [total * share / sum(exact) for share in exact]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda number: counts[number] - quotas[number])
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts
