"""A recipe: one YAML file, one experiment. It reads whole: no includes; unknown keys are errors, all told at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mixprec import artifacts
from mixprec.calibration.spec import CalibrationSpec
from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.formats import FormatName, checkpoint_format
from mixprec.checkpoint.runtimes import DeviceName, RuntimeName
from mixprec.compress.options import SolveOptions
from mixprec.errors import UserError, from_pydantic
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.importance.options import RESAMPLES, SWEEP_GB, Preset
from mixprec.numerics.formats import GgmlFormat
from mixprec.peers import METHODS, Engine
from mixprec.plan.budgetspec import SENSITIVITY
from mixprec.plan.rules import PlanSpec, needs_importance, tables_wanted
from mixprec.plan.schema import NEEDS_INPUTS, GgmlText, Method, Treatment
from mixprec.sensitivity.spec import AblationSpec, SensitivitySpec, treatments
from mixprec.traces.annotate import Rule

#: Prefix of sources that lie in the data folder: ``data:calibration/wikitext2_raw_test.txt``.
_DATA = "data:"
DATA_VARIABLE = "MIXPREC_DATA"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Part):
    """The model to look into and to compress."""

    id: str = Field(description="bundled name, hub id, folder or GGUF file")
    revision: str | None = Field(None, description="hub revision; pin it")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type computed in")
    device: str = Field("cpu", description="cpu, cuda, mps, or auto for several GPUs")


class TracesSpec(_Part):
    """Annotated traces, and the rule by which annotations become spans."""

    source: str = Field(description="bundled:NAME, data:PATH or a path to a JSONL file")
    preset: Rule = Field("paper", description="span rule: paper, released or aligned")
    annotator: Literal["given", "cues"] = Field("given", description="the file's annotations, or lexical cues")
    first: int | None = Field(None, ge=1, description="take only so many traces")


class ImportanceSpec(_Part):
    """Attribution patching over the traces."""

    preset: Preset = Field("paper", description="formulas of the paper, or of the released code")
    compare: tuple[Preset, ...] = Field((), description="presets computed in the same pass, for comparison")
    max_tokens: int | None = Field(None, ge=2, description="cut longer traces here; default: the model's context")
    resamples: int = Field(RESAMPLES, ge=0, description="bootstrap resamples for intervals; 0 gives none")
    beyond_linear: bool = Field(False, description="embeddings, norms and logits too, in importance_beyond.json")
    stream: bool = Field(False, description="read weights block by block, for a model larger than memory")
    sweep_gb: float = Field(SWEEP_GB, gt=0, description="with stream: memory for the traces of one sweep, 10^9 bytes")

    @property
    def presets(self) -> tuple[Preset, ...]:
        """All presets, the main one first, none twice."""
        return tuple(dict.fromkeys((self.preset, *self.compare)))


class CompressSpec(SolveOptions):
    """How modules that are not kept are compressed."""

    method: Method = Field("rtn", description="the method of plans and rules that name none")
    calibration: CalibrationSpec | None = Field(None, description="what methods see that look at a linear's inputs")
    engine: Engine = Field("mixprec", description="who compresses: mixprec, or another quantizer")
    engine_settings: dict[Engine, dict[str, Any]] = Field({}, description="settings of other quantizers, by engine")

    @property
    def options(self) -> SolveOptions:
        """The settings of the methods alone."""
        return SolveOptions.model_validate(self.model_dump(include=set(SolveOptions.model_fields)))


class CheckpointSpec(_Part):
    """What is written for each variant, and which runtime has to load it."""

    format: FormatName = Field("dense", description="how weights lie on disk")
    embedding: GgmlText | None = Field(None, description="gguf: type of the embedding; default: the model's own")
    head: GgmlText | None = Field(None, description="gguf: of an output head of its own")
    runtime: RuntimeName | None = Field(None, description="checked before any work: it has to load the checkpoint")
    version: str | None = Field(None, description="of the runtime; default: the newest that is known")
    device: DeviceName = Field("ampere", description="where it runs: cpu, or a generation of GPUs")

    @field_validator("version", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value  # YAML reads 0.32 as a number

    @property
    def written(self) -> CheckpointFormat:
        """How it is written. Raises UserError for what can't be."""
        return checkpoint_format(self.format, embedding=self.embedding, head=self.head)

    @model_validator(mode="after")
    def _possible(self) -> CheckpointSpec:
        try:
            self.written  # noqa: B018 (what it raises)
        except UserError as problem:
            raise ValueError(str(problem)) from None
        return self


class EvaluateSpec(ProtocolSpec):
    """What every variant is compared with the original on, and the benchmarks that it is run on."""

    traces: TracesSpec | None = None
    text: str | None = Field(None, description="bundled:held_out, data:PATH or a path to a text file")
    text_tokens: int = Field(512, ge=2, description="tokens that go through the model at once")
    text_passages: int | None = Field(None, ge=1, description="take only so many passages of the text")
    max_tokens: int | None = Field(None, ge=2, description="cut longer traces here; default: the model's context")

    @model_validator(mode="after")
    def _something(self) -> EvaluateSpec:
        if self.traces is None and self.text is None and not self.benchmarks:
            raise ValueError("nothing to evaluate on; give traces, text or benchmarks")
        return self

    @property
    def protocol(self) -> ProtocolSpec:
        """The benchmarks' part alone."""
        return ProtocolSpec.model_validate(self.model_dump(include=set(ProtocolSpec.model_fields)))


class Variant(_Part):
    """One plan over the recipe's model."""

    description: str = ""
    plan: PlanSpec
    engine: Engine | None = Field(None, description="who compresses this variant; default: compress.engine")


class Recipe(_Part):
    """One experiment."""

    title: str = ""
    data: str | None = Field(None, description="data folder; --data and MIXPREC_DATA go before it")
    model: ModelSpec
    traces: TracesSpec | None = None
    importance: ImportanceSpec | None = None
    sensitivity: SensitivitySpec | None = None
    ablation: AblationSpec | None = None
    plan: PlanSpec | None = None
    variants: dict[str, Variant] = Field({}, description="several plans over one model, in one table")
    compress: CompressSpec = CompressSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluate: EvaluateSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.plan is not None and self.variants:
            raise ValueError("plan and variants exclude one another; write the plan as one of the variants")
        if self.importance is not None and self.traces is None:
            raise ValueError("importance needs traces: {source: …}")
        for name, variant in self.all_variants.items():
            if needs_importance(variant.plan) and self.importance is None:
                raise ValueError(f"variant {name} ranks modules by importance; add importance: {{}} and traces")
            if not name or not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or name[0] == ".":
                raise ValueError(f"variant {name!r}: use letters, digits, - _ . in names; they become folders")
        self._check_engines()
        calibrated = self._calibrated()
        if calibrated and self.compress.calibration is None:
            raise ValueError(
                f"{calibrated[0]} looks at the inputs of linears; add compress: {{calibration: {{…}}}}, "
                "for example {traces: bundled:attribution, samples: 16, tokens: 512}"
            )
        self._check_sensitivity()
        self._check_ablation()
        self._check_ggml()
        self._check_budgets()
        if not (self.importance or self.sensitivity or self.ablation or self.all_variants):
            raise ValueError("nothing to do; give importance, sensitivity, ablation, plan or variants")
        return self

    def _check_ablation(self) -> None:
        spec = self.ablation
        if spec is None:
            return
        if self.compress.calibration is None:
            raise ValueError("ablation: modules are solved on calibration data; add compress: {calibration: {…}}")
        if self.evaluate is None:
            raise ValueError("ablation: nothing to measure on; add evaluate: {traces: {source: …}}, text or both")
        try:
            self.candidates()
        except UserError as problem:
            raise ValueError(str(problem)) from None

    def candidates(self) -> dict[str, Treatment]:
        """What single modules are solved for, by the names of tables of sensitivity: its formats and the ablation's.

        Raises UserError for a candidate that the method can't make.
        """
        found: dict[str, Treatment] = {}
        if self.sensitivity is not None:
            found |= self.sensitivity.treatments(self.compress.method)
        if self.ablation is not None:
            method = (self.sensitivity and self.sensitivity.method) or self.compress.method
            found |= treatments(self.ablation.formats, method, "ablation.formats")
        return found

    def _check_budgets(self) -> None:
        scored = self.sensitivity
        for name, variant in self.all_variants.items():
            budget = variant.plan.budget
            if budget is None or SENSITIVITY not in tables_wanted(variant.plan):
                continue
            if scored is None or budget.scores != (SENSITIVITY,):
                raise ValueError(
                    f"variant {name}: budget.scores: sensitivity is a part of the recipe; add sensitivity: {{…}}"
                )
            method, method_scored = variant.plan.method or self.compress.method, scored.method or self.compress.method
            if method != method_scored:
                raise ValueError(f"variant {name} compresses by {method}, sensitivity scores {method_scored}; take one")
            unknown = [str(choice) for choice in budget.candidates if choice.changes and choice not in scored.formats]
            if unknown:
                raise ValueError(f"variant {name}: budget.candidates: {', '.join(unknown)}: not in sensitivity.formats")

    def _check_sensitivity(self) -> None:
        spec = self.sensitivity
        if spec is None:
            return
        if self.compress.calibration is None:
            raise ValueError("sensitivity: modules are solved on calibration data; add compress: {calibration: {…}}")
        if spec.behaviours and self.traces is None:
            raise ValueError("sensitivity.behaviours: spans come from traces; add traces: {source: …}")
        if spec.scorer == "importance" and self.importance is None:
            raise ValueError("sensitivity.scorer: importance needs importance: {} and traces")
        try:
            spec.treatments(self.compress.method)
        except UserError as problem:
            raise ValueError(str(problem)) from None

    def _check_ggml(self) -> None:
        """Some of llama.cpp's types are only made with calibration data."""
        specs = [variant.plan for variant in self.all_variants.values()]
        named = [spec.default for spec in specs] + [rule.format for spec in specs for rule in spec.rules]
        for format in named:
            if isinstance(format, GgmlFormat) and format.needs_importance and self.compress.calibration is None:
                raise ValueError(
                    f"format {format}: llama.cpp makes it only with an importance vector; add compress: "
                    "{calibration: {…}}, for example {traces: bundled:attribution, samples: 16, tokens: 512}"
                )

    def _check_engines(self) -> None:
        for name, variant in self.all_variants.items():
            engine, method = self.engine_of(variant), variant.plan.method or self.compress.method
            if engine != "mixprec" and method not in METHODS[engine]:
                known = ", ".join(METHODS[engine])
                raise ValueError(f"variant {name}: engine {engine} has no method {method}; it has {known}")
            if engine != "mixprec" and self.checkpoint.format != "dense":
                raise ValueError(
                    f"variant {name}: what engine {engine} makes is written dense; leave out checkpoint.format"
                )

    def _calibrated(self) -> list[str]:
        """Methods in the plans, and engines, that need calibration data."""
        variants = self.all_variants.values()
        named = {rule.method for variant in variants for rule in variant.plan.rules if rule.method}
        methods = (named | {variant.plan.method or self.compress.method for variant in variants}) & NEEDS_INPUTS
        engines = {self.engine_of(variant) for variant in variants} & {"autoround"}
        return [*(f"method {method}" for method in sorted(methods)), *(f"engine {engine}" for engine in engines)]

    def engine_of(self, variant: Variant) -> Engine:
        """Who compresses a variant."""
        return variant.engine or self.compress.engine

    @property
    def all_variants(self) -> dict[str, Variant]:
        """The variants; a single plan is the variant ``compressed``."""
        if self.plan is not None:
            return {"compressed": Variant(plan=self.plan)}
        return dict(self.variants)


class _UniqueKeys(yaml.SafeLoader):
    """Of two equal keys YAML keeps the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; ``overrides`` are ``key.sub=value`` with YAML values.

    Raises UserError naming the file and everything that is wrong with it.
    """
    text = artifacts.read_text(path)
    try:
        data = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as problem:
        where = getattr(problem, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(problem, 'problem', problem)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys; see mixprec ls for examples")
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as problem:
        raise from_pydantic(problem, str(path), Recipe) from None


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override!r}: write key.sub=value, for example model.dtype=bfloat16")
    *path, last = key.split(".")
    for part in path:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override!r}: {part} holds no keys")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: {value!r} is not valid YAML") from None


def data_folder(recipe: Recipe, option: Path | None) -> Path | None:
    """Where ``data:`` sources lie: --data, else MIXPREC_DATA, else the recipe's ``data`` key."""
    chosen = option or os.environ.get(DATA_VARIABLE) or recipe.data
    return Path(chosen).expanduser() if chosen else None


def locate(source: str, data: Path | None) -> str:
    """A source with ``data:`` replaced by the data folder.

    Raises UserError where there is no data folder or no such file in it.
    """
    if not source.startswith(_DATA):
        return source
    if data is None:
        raise UserError(
            f"{source}: no data folder is known; give --data FOLDER, set {DATA_VARIABLE}, or add data: to the recipe"
        )
    path = data / source.removeprefix(_DATA)
    if not path.is_file():
        raise UserError(f"{source}: {path} does not exist; check --data, {DATA_VARIABLE} or the recipe's data key")
    return str(path)


def catalogue() -> dict[str, Path]:
    """Recipes that come with mixprec: name -> file. They lie beside the package, or in the installation's share."""
    for folder in (
        Path(__file__).parent.parent / "recipes",
        Path(sys.prefix) / "share" / "mixprec" / "recipes",
    ):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find(name: str) -> Path:
    """A recipe's file, by path or by its name in the catalogue.

    Raises UserError where there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = catalogue()
    stem = path.stem if path.suffix == ".yaml" else name
    if stem in known and len(path.parts) <= 2:
        return known[stem]
    raise UserError(f"{name}: no such recipe; there are {', '.join(known)}, or give a path")
