"""A recipe as a whole, and what its parts ask of one another."""

from __future__ import annotations

from pydantic import Field, model_validator

from mixprec.core.errors import UserError
from mixprec.core.float64 import check_float64
from mixprec.numerics.formats import GgmlFormat
from mixprec.peers import METHODS, Engine
from mixprec.plan.budgetspec import SENSITIVITY
from mixprec.plan.methods import Method, needing_inputs
from mixprec.plan.rules import PlanSpec, needs_importance, tables_wanted
from mixprec.plan.schema import Treatment
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


class Recipe(Part):
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
        self._check_device()
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

    def _check_device(self) -> None:
        for what, part in (("ablation", self.ablation), ("sensitivity", self.sensitivity), ("plan", self.all_variants)):
            if part:
                try:
                    check_float64(self.model.device, what)
                except UserError as problem:
                    raise ValueError(f"model.{problem}") from None

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
            if budget is None:
                continue
            own = SENSITIVITY in tables_wanted(variant.plan)
            if own and (scored is None or budget.scores != (SENSITIVITY,)):
                raise ValueError(
                    f"variant {name}: budget.scores: sensitivity is a part of the recipe; add sensitivity: {{…}}"
                )
            if budget.exchange is not None and (scored is None or scored.scorer not in GRADIENT):
                raise ValueError(
                    f"variant {name}: budget.exchange: plans are put together from the candidates of the recipe's "
                    "sensitivity, and proposed by its gradients; add sensitivity: {scorer: fisher, formats: […]}"
                )
            if not own or scored is None:
                continue
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

    @property
    def methods(self) -> set[Method]:
        """The methods that the plans, and what single modules are solved for, name."""
        return self._planned | {treatment.method for treatment in self.candidates().values()}

    @property
    def _planned(self) -> set[Method]:
        variants = self.all_variants.values()
        named = {rule.method for variant in variants for rule in variant.plan.rules if rule.method}
        return named | {variant.plan.method or self.compress.method for variant in variants}

    def _calibrated(self) -> list[str]:
        """Methods in the plans, and engines, that need calibration data."""
        engines = {self.engine_of(variant) for variant in self.all_variants.values()} & {"autoround"}
        methods = sorted(needing_inputs(self._planned))
        return [*(f"method {method}" for method in methods), *(f"engine {engine}" for engine in engines)]

    def engine_of(self, variant: Variant) -> Engine:
        """Who compresses a variant."""
        return variant.engine or self.compress.engine

    @property
    def all_variants(self) -> dict[str, Variant]:
        """The variants; a single plan is the variant ``compressed``."""
        if self.plan is not None:
            return {"compressed": Variant(plan=self.plan)}
        return dict(self.variants)
