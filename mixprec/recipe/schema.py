"""A recipe as a whole, and what its parts ask of one another."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, ValidationInfo, model_validator

from mixprec.core.errors import Problems, UserError
from mixprec.core.float64 import check_float64
from mixprec.numerics.formats import GgmlFormat
from mixprec.numerics.products import unmixed
from mixprec.plan.budgetspec import SENSITIVITY
from mixprec.plan.methods import Method, needing_inputs, scaling, unguided, using_inputs
from mixprec.plan.rules import PlanSpec, needs_importance, tables_wanted
from mixprec.plan.schema import Treatment
from mixprec.recipe import own
from mixprec.recipe.engines import METHODS, Engine
from mixprec.recipe.own import AgreementSpec, DistillSpec, GenerateSpec, ShiftSpec
from mixprec.recipe.parts import (
    CheckpointSpec,
    CompressSpec,
    EvaluateSpec,
    ImportanceSpec,
    ModelSpec,
    Part,
    TracesSpec,
    Variant,
)
from mixprec.sensitivity.spec import GRADIENT, AblationSpec, SensitivitySpec, treatments
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.tune.options import TuneSpec


class About(Part):
    """What ``mixprec ls`` and recipes/README.md say of a recipe; nothing is computed from it."""

    paper: str = Field("", description="tables and figures of arXiv 2504.02010 that it makes")
    needs: str = Field("", description="what has to be there")
    takes: str = Field("", description="time, memory, disk")


class Recipe(Part):
    """One experiment."""

    title: str = ""
    about: About = About()
    data: str | None = Field(None, description="data folder; --data and MIXPREC_DATA go before it")
    model: ModelSpec
    distill: DistillSpec | None = Field(None, description="the model learns first; all else sees what it became")
    generate: GenerateSpec | None = Field(None, description="the model writes traces, the source own:traces")
    traces: TracesSpec | None = None
    importance: ImportanceSpec | None = None
    agreement: AgreementSpec | None = Field(None, description="another annotation of the traces, and its importance")
    sensitivity: SensitivitySpec | None = None
    ablation: AblationSpec | None = None
    plan: PlanSpec | None = None
    variants: dict[str, Variant] = Field({}, description="several plans over one model, in one table")
    compress: CompressSpec = CompressSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluate: EvaluateSpec | None = None
    shift: ShiftSpec | None = Field(None, description="importance of what the recipe makes, beside the original's")

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Recipe:
        """Where ``info.context`` is a list, it takes the problems, and who gave it looks for others too."""
        problems = list(dict.fromkeys(self._problems()))
        if isinstance(info.context, list):
            info.context.extend(problems)
        elif problems:
            raise Problems(problems)
        return self

    def _problems(self) -> Iterator[str]:
        """What doesn't fit together, known without model and data."""
        if self.plan is not None and self.variants:
            yield "plan and variants exclude one another; write the plan as one of the variants"
        if self.importance is not None and self.traces is None:
            yield "importance needs traces: {source: …}"
        for name, variant in self.all_variants.items():
            if needs_importance(variant.plan) and self.importance is None:
                yield f"variant {name} ranks modules by importance; add importance: {{}} and traces"
            if not name or not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or name[0] == ".":
                yield f"variant {name!r}: use letters, digits, - _ . in names; they become folders"
        yield from self._of_device()
        yield from self._of_engines()
        yield from self._of_guidance()
        yield from self._of_products()
        calibrated = self._calibrated()
        if calibrated and self.compress.calibration is None:
            yield (
                f"{calibrated[0]} looks at the inputs of linears; add compress: {{calibration: {{…}}}}, "
                "for example {traces: bundled:attribution, samples: 16, tokens: 512}"
            )
        yield from self._of_sensitivity()
        yield from self._of_ablation()
        yield from self._of_ggml()
        yield from self._of_budgets()
        yield from self._of_tuning()
        yield from own.problems(self)
        yield from self._of_base()
        yield from self._of_servers()
        stages = (self.distill, self.generate, self.importance, self.sensitivity, self.ablation)
        if not (any(stages) or self.all_variants):
            yield "nothing to do; give distill, generate, importance, sensitivity, ablation, plan or variants"

    def _of_device(self) -> Iterator[str]:
        for what, part in (("ablation", self.ablation), ("sensitivity", self.sensitivity), ("plan", self.all_variants)):
            if part:
                try:
                    check_float64(self.model.device, what)
                except UserError as problem:
                    yield f"model.{problem}"

    def _of_servers(self) -> Iterator[str]:
        for name in self.evaluate.servers if self.evaluate is not None else ():
            if name not in self.all_variants:
                yield f"evaluate.servers: {name} is no variant; there are {', '.join(self.all_variants) or 'none'}"

    def _of_base(self) -> Iterator[str]:
        scored = self.sensitivity is not None and self.sensitivity.scorer == "updates"
        if self.compress.fine_tuned_from is not None and self.compress.updates is not None:
            yield "compress.fine_tuned_from and updates exclude one another; leave one out"
        if self.compress.fine_tuned_from is not None and not scored and not scaling(self.methods):
            yield "compress.fine_tuned_from: nothing looks at it; take method awq, or sensitivity: {scorer: updates, …}"

    def _of_guidance(self) -> Iterator[str]:
        scored = {self.method_scored} if self.sensitivity or self.ablation else set()
        methods = self._planned | scored
        if self.compress.guided is not None and methods and (problem := unguided(methods, "compress.guided")):
            yield problem

    def _of_products(self) -> Iterator[str]:
        if problem := unmixed(self.compress.products, self.model.dtype, "compress.products"):
            yield problem

    def _of_ablation(self) -> Iterator[str]:
        spec = self.ablation
        if spec is None:
            return
        if self.compress.calibration is None and needing_inputs([self.method_scored]):
            yield "ablation: modules are solved on calibration data; add compress: {calibration: {…}}"
        if self.evaluate is None:
            yield "ablation: nothing to measure on; add evaluate: {traces: {source: …}}, text or both"
        try:
            treatments(spec.formats, self.method_scored, "ablation.formats")
        except UserError as problem:
            yield str(problem)

    def candidates(self) -> dict[str, Treatment]:
        """What single modules are solved for, by the names of tables of sensitivity: its formats and the ablation's.

        Raises UserError for a candidate that the method can't make.
        """
        found: dict[str, Treatment] = {}
        if self.sensitivity is not None and self.sensitivity.solves:
            found |= self.sensitivity.treatments(self.compress.method)
        if self.ablation is not None:
            found |= treatments(self.ablation.formats, self.method_scored, "ablation.formats")
        return found

    @property
    def method_scored(self) -> Method:
        """The method that single modules are solved by."""
        return (self.sensitivity and self.sensitivity.method) or self.compress.method

    def _of_budgets(self) -> Iterator[str]:
        scored = self.sensitivity
        for name, variant in self.all_variants.items():
            budget = variant.plan.budget
            if budget is None:
                continue
            own = SENSITIVITY in tables_wanted(variant.plan)
            if own and (scored is None or budget.scores != (SENSITIVITY,)):
                yield (f"variant {name}: budget.scores: sensitivity is a part of the recipe; add sensitivity: {{…}}")
            if budget.exchange is not None and (scored is None or scored.scorer not in GRADIENT):
                yield (
                    f"variant {name}: budget.exchange: plans are put together from the candidates of the recipe's "
                    "sensitivity, and proposed by its gradients; add sensitivity: {scorer: fisher, formats: […]}"
                )
            if not own or scored is None:
                continue
            method, method_scored = variant.plan.method or self.compress.method, scored.method or self.compress.method
            if method != method_scored:
                yield f"variant {name} compresses by {method}, sensitivity scores {method_scored}; take one"
            if left := sorted(set(budget.outside) - set(scored.outside)):
                yield f"variant {name}: budget.outside: {', '.join(left)}: not in sensitivity.outside"
            unknown = [str(choice) for choice in budget.scored if choice not in scored.formats]
            if unknown:
                yield f"variant {name}: budget.candidates: {', '.join(unknown)}: not in sensitivity.formats"

    def _of_sensitivity(self) -> Iterator[str]:
        spec = self.sensitivity
        if spec is None:
            return
        if self.compress.calibration is None:
            yield "sensitivity: modules are solved on calibration data; add compress: {calibration: {…}}"
        if spec.behaviours and self.traces is None:
            yield "sensitivity.behaviours: spans come from traces; add traces: {source: …}"
        if spec.scorer == "importance" and self.importance is None:
            yield "sensitivity.scorer: importance needs importance: {} and traces"
        if spec.scorer == "updates" and not (self.compress.fine_tuned_from or self.compress.updates):
            yield "sensitivity.scorer: updates needs the model's base; add compress: {fine_tuned_from: {id: …}}"
        try:
            spec.treatments(self.compress.method)
        except UserError as problem:
            yield str(problem)

    def _of_tuning(self) -> Iterator[str]:
        for name, variant in self.all_variants.items():
            spec = self.tune_of(variant)
            if spec is None:
                continue
            if self.compress.calibration is None and spec.calibration is None:
                yield f"variant {name}: tune needs samples; add compress: {{calibration: {{…}}}}"
            if self.engine_of(variant) != "mixprec":
                yield (
                    f"variant {name}: what engine {self.engine_of(variant)} makes is written dense, without scales to "
                    "tune; set tune: false in the variant"
                )
        calibration = self.compress.calibration
        for name, variant in self.all_variants.items():
            options = self.tune_blocks_of(variant)
            if options and calibration and (problem := options.too_few(calibration.samples)):
                yield f"variant {name}: {problem}"

    def _of_ggml(self) -> Iterator[str]:
        """Some of llama.cpp's types are only made with calibration data."""
        specs = [variant.plan for variant in self.all_variants.values()]
        named = [spec.default for spec in specs] + [rule.format for spec in specs for rule in spec.rules]
        named += [line.format for line in self.checkpoint.outside.values()]
        for format in named:
            if isinstance(format, GgmlFormat) and format.needs_importance and self.compress.calibration is None:
                yield (
                    f"format {format}: llama.cpp makes it only with an importance vector; add compress: "
                    "{calibration: {…}}, for example {traces: bundled:attribution, samples: 16, tokens: 512}"
                )

    def _of_engines(self) -> Iterator[str]:
        for name, variant in self.all_variants.items():
            engine, method = self.engine_of(variant), variant.plan.method or self.compress.method
            if engine != "mixprec" and method not in METHODS[engine]:
                known = ", ".join(METHODS[engine])
                yield f"variant {name}: engine {engine} has no method {method}; it has {known}"
            if engine != "mixprec" and self.checkpoint.format != "dense":
                yield (f"variant {name}: what engine {engine} makes is written dense; leave out checkpoint.format")

    @property
    def calibrates(self) -> bool:
        """Whether a stage looks at the calibration data."""
        if self.compress.calibration is None:
            return False
        return bool(self.sensitivity or using_inputs(self.methods) or self._calibrated())

    @property
    def methods(self) -> set[Method]:
        """The methods that the plans, and what single modules are solved for, name."""
        return self._planned | {treatment.method for treatment in self.candidates().values()}

    @property
    def _planned(self) -> set[Method]:
        variants = self.all_variants.values()
        named = {rule.method for variant in variants for rule in variant.plan.rules if rule.method}
        outside = {line.method for line in self.checkpoint.outside.values() if line.method}
        return named | outside | {variant.plan.method or self.compress.method for variant in variants}

    def _calibrated(self) -> list[str]:
        """Methods in the plans, and engines, that need calibration data."""
        engines = {self.engine_of(variant) for variant in self.all_variants.values()} & {"autoround"}
        methods = sorted(needing_inputs(self._planned))
        tuned = ["tune_blocks"] if any(map(self.tune_blocks_of, self.all_variants.values())) else []
        return [*(f"method {each}" for each in methods), *tuned, *(f"engine {each}" for each in engines)]

    def engine_of(self, variant: Variant) -> Engine:
        """Who compresses a variant."""
        return variant.engine or self.compress.engine

    def tune_of(self, variant: Variant) -> TuneSpec | None:
        """How a variant is tuned, if it is."""
        return self.compress.tune if variant.tune is None else (variant.tune or None)

    def tune_blocks_of(self, variant: Variant) -> TuneBlocks | None:
        """How a variant's blocks are tuned, if they are: those that mixprec itself compresses."""
        if self.engine_of(variant) != "mixprec":
            return None
        return self.compress.tune_blocks if variant.tune_blocks is None else (variant.tune_blocks or None)

    @property
    def tunings(self) -> list[TuneSpec]:
        """How variants are tuned that are."""
        return [spec for variant in self.all_variants.values() if (spec := self.tune_of(variant)) is not None]

    @property
    def answering(self) -> list[str]:
        """The variants whose benchmarks are answered here, not by a server."""
        served = self.evaluate.servers if self.evaluate is not None else {}
        return [name for name in self.all_variants if name not in served]

    @property
    def all_variants(self) -> dict[str, Variant]:
        """The variants; a single plan is the variant ``compressed``."""
        if self.plan is not None:
            return {"compressed": Variant(plan=self.plan)}
        return dict(self.variants)
