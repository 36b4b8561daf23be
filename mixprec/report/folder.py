"""What a report reads of a run's folder: its summary, and what else lies there, each part checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.shapes import Count, Number, Shape, check
from mixprec.importance import artifact
from mixprec.importance import shift as shifts
from mixprec.report.outputs import Outputs, read_outputs
from mixprec.report.shapes import read_ablation, read_summary
from mixprec.traces.spans import AnnotatedTrace, load_spans


class _Cell(Shape):
    layer: Annotated[int, Field(ge=0, le=1000)]
    kind: str
    weights: Count
    bits: Annotated[float, Field(ge=0, le=64)]
    formats: dict[str, Count]


class _Layout(Shape):
    layers: Annotated[int, Field(ge=1, le=1000)]
    tied: bool
    cells: list[_Cell]

    @model_validator(mode="after")
    def _inside(self) -> _Layout:
        if any(cell.layer > self.layers for cell in self.cells):
            raise ValueError(f"cells: a layer beyond the {self.layers} that there are")
        return self


class _Tokens(Shape):
    tokens: list[Annotated[list[Number], Field(min_length=3, max_length=3)]]
    of: Count

    @model_validator(mode="after")
    def _in_order(self) -> _Tokens:
        for start, end, _ in self.tokens:
            if not 0 <= start <= end or not start.is_integer() or not end.is_integer():
                raise ValueError("tokens: each has the characters [start, end) that it stands for")
        return self


class _Passage(Shape):
    tokens: Annotated[int, Field(ge=1)]
    kl_sum: Number


class _Passages(Shape):
    kl_by_passage: Annotated[list[_Passage], Field(min_length=1)]


class _TokenKL(Shape):
    of: Count
    traces: list[_Tokens]


class RunFolder(NamedTuple):
    """A finished run. ``layouts``, ``token_kl``, ``outputs``: variant -> layout.json, tokens.json, what it generated.

    ``held_out``: the traces that it was evaluated on; ``shift``: where the run's importance is compared with another's;
    ``shifts``: model -> the same of what the recipe made;
    ``passages``: variant -> tokens and summed KL of each passage.
    """

    name: str
    summary: Mapping[str, Any]
    importance: Mapping[str, Any] | None = None
    recipe: str | None = None
    ablation: Mapping[str, Any] | None = None
    layouts: Mapping[str, Mapping[str, Any]] = {}
    token_kl: Mapping[str, Mapping[str, Any]] = {}
    held_out: tuple[AnnotatedTrace, ...] = ()
    outputs: Mapping[str, Outputs] = {}
    shift: Mapping[str, Any] | None = None
    shifts: Mapping[str, Mapping[str, Any]] = {}
    passages: Mapping[str, Sequence[Mapping[str, Any]]] = {}


def read_run(folder: Path) -> RunFolder:
    """Read a run.

    Raises UserError where it is unfinished, or a part of it is broken or of another schema version.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    if not (folder / "summary.json").is_file():
        raise UserError(
            f"{folder}: no finished run (summary.json is missing); run its recipe again, which continues where it "
            "stopped, or give the folder of another run"
        )
    summary = read_summary(folder / "summary.json")
    pages: Mapping[str, str] = summary.get("pages") or {}
    importance, recipe = folder / "importance" / "importance.json", folder / "recipe.yaml"
    held_out = folder / "evaluation" / "spans.jsonl"
    variants = {name: folder / "variants" / name for name in summary.get("variants") or {}}
    token_kl = _read_all(variants, "tokens.json", _TokenKL)
    return RunFolder(
        name=folder.resolve().name,
        summary=summary,
        importance=artifact.load(importance) if importance.exists() else None,
        recipe=artifacts.read_text(recipe) if recipe.exists() else None,
        ablation=read_ablation(folder / pages["ablation"] / "ablation.json") if "ablation" in pages else None,
        layouts=_read_all(variants, "layout.json", _Layout),
        token_kl=token_kl,
        held_out=tuple(load_spans(held_out)) if token_kl and held_out.exists() else (),
        outputs={name: read_outputs(path) for name, path in variants.items() if (path / "benchmarks.json").exists()},
        shift=_shift(folder),
        shifts={
            name: shifts.read(folder / Path(each["page"]).with_name("shift.json"))
            for name, each in (summary.get("shifts") or {}).items()
            if each.get("page")
        },
        passages={
            name: found["kl_by_passage"] for name, found in _read_all(variants, "result.json", _Passages).items()
        },
    )


def _read_all(variants: Mapping[str, Path], file: str, shape: type[Shape]) -> dict[str, dict[str, Any]]:
    """The ``file`` of every variant that has one."""
    paths = {name: folder / file for name, folder in variants.items()}
    return {name: check(artifacts.read_versioned(path), path, shape) for name, path in paths.items() if path.exists()}


def _shift(folder: Path) -> dict[str, Any] | None:
    """What ``mixprec shift`` wrote into the run's folder, if it did."""
    path = folder / "shift" / "shift.json"
    return shifts.read(path) if path.exists() else None
