"""What reports and tables read in summary.json and benchmarks.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from mixprec.core import artifacts
from mixprec.core.shapes import Count, Number, Pair, Ranks, Shape, check


class _Measured(Shape):
    tokens: Count | None = None
    passages: Count | None = None
    perplexity: Number | None = None
    kl_mean: Number | None = None
    kl_mean_ci: Pair | None = None
    kl_median: Number | None = None
    kl_p99: Number | None = None
    top1_agreement: Number | None = None


class _Score(Shape):
    mean: Number | None
    ci: Pair | None = None


class _Counted(_Score):
    se: Number | None
    n: Count
    seeds: Count


class _Tokens(Shape):
    mean: Number


class _Thinking(Shape):
    open: Count


class _Diagnosis(Shape):
    n: Count
    cut: Count
    collapsed: Count
    thinking: _Thinking
    gibberish: Number | None
    tokens: _Tokens | None


class _Outcomes(Shape):
    none: Count


class _Lengths(Shape):
    short: Number | None
    long: Number | None
    ratio: Number | None
    short_ci: Pair | None
    long_ci: Pair | None
    n: Count

    @model_validator(mode="after")
    def _all_or_none(self) -> _Lengths:
        if len({part is None for part in (self.short, self.long, self.ratio, self.short_ci, self.long_ci)}) > 1:
            raise ValueError("short, long, ratio and their intervals are all numbers, or all null")
        return self


class _Compute(Shape):
    shares: dict[str, dict[str, _Lengths]]


class _Answers(Shape):
    accuracy: list[Number] | None = None
    em: list[Number] | None = None
    f1: list[Number] | None = None


class _Result(Shape):
    title: str
    rows: str
    paper_questions: bool
    accuracy: _Counted | None = None
    em: _Counted | None = None
    f1: _Counted | None = None
    at_k: dict[str, _Score]
    outcomes: _Outcomes
    diagnosis: _Diagnosis
    compute: _Compute
    per_question: dict[str, _Answers] | None = None


class _Protocol(Shape):
    seeds: list[int]
    prompts: str
    limit: Count | None
    max_new_tokens: Count
    temperature: Number
    top_p: Number
    template: dict[str, Any] | None = None
    thinking_budget: Count | None = None


class Benchmarks(Shape):
    """benchmarks.json."""

    labels: dict[str, str] = Field(default_factory=dict)
    scoring_rules: Count | None = None
    benchmarks: dict[str, _Result]
    average: _Score | None = None


class _Difference(Shape):
    difference: Number | None = None
    kl_difference: Number | None = None
    ci: Pair | None = None


class _Likely(Shape):
    title: str
    rows: str | None = None
    accuracy: _Counted | None = None
    share: _Counted | None = None
    gold_nll: _Counted
    chance: Number | None = None
    majority: Number | None = None
    within_chance: bool | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> _Likely:
        closed = (self.accuracy, self.share, self.chance, self.majority, self.within_chance)
        if len({part is None for part in closed}) > 1:
            raise ValueError("accuracy, share, chance, majority and within_chance are all there, or none is")
        return self


class Likelihood(Shape):
    """likelihood.json."""

    labels: dict[str, str] = Field(default_factory=dict)
    rules: Count
    benchmarks: dict[str, _Likely]


class _AllBenchmarks(Shape):
    protocol: _Protocol | None = None
    scoring_rules: Count | None = None
    baseline: str = ""
    differences: dict[str, dict[str, dict[str, _Difference]]] | None = None


class _AllLikelihoods(Shape):
    protocol: dict[str, Any] | None = None
    scoring_rules: Count | None = None
    baseline: str = ""
    differences: dict[str, dict[str, dict[str, _Difference]]] | None = None


class _Fidelity(Shape):
    tokens: Count
    passages: Count
    perplexity: Number
    kl_mean: Number
    kl_mean_ci: Pair | None
    kl_median: Number
    kl_p99: Number
    top1_agreement: Number


class Fidelity(Shape):
    """result.json."""

    traces: _Fidelity | None
    text: _Fidelity | None
    behaviours: dict[str, _Fidelity | None] | None
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _something(self) -> Fidelity:
        if self.traces is None and self.text is None:
            raise ValueError("traces, text: one of them has to be measured")
        return self


class _Worst(Shape):
    label: str
    error: Number


class _Quality(Shape):
    weight_error: Number | None
    worst_weight: _Worst | None
    output_error: Number | None
    worst_output: _Worst | None
    zeros: Number | None
    retries: Count
    fallbacks: Count
    tuned: Number | None = None
    untuned: Count = 0
    starved: Count = 0


class _Course(Shape):
    before: Number
    after: Number


class _Variant(_Measured):
    description: str | None = None
    engine: str | None = None
    control: bool | None = None
    methods: list[str] | None = None
    modules_quantized: Count | None = None
    code_bits: Number | None = None
    effective_bits: Number | None = None
    bytes: Count | None = None
    bytes_on_disk: Count | None = None
    quality: _Quality | None = None
    tune: _Course | None = None
    text: _Measured | None = None
    behaviours: dict[str, _Measured | None] | None = None
    benchmarks: dict[str, _Result | _Score] | None = None
    likelihood: dict[str, _Likely] | None = None


class _Evaluation(Shape):
    traces: _Measured | None = None
    text: _Measured | None = None
    skipped: dict[str, Count] | None = None
    texts: str | None = None
    rules: Count | None = None


class _Module(Shape):
    label: str
    relative: Number | None = None
    rank_interval: Ranks | None = None


class _Behaviour(Shape):
    top_modules: list[_Module] | None = None


class _Moved(Shape):
    moved: Number
    spearman: Number | None


class _Shift(Shape):
    behaviours: dict[str, _Moved] = Field(default_factory=dict)
    unknown: str = ""
    own: bool = False
    # In the run: the report links to it.
    page: Annotated[str, Field(pattern=r"^(base|(variants|models)/[\w-][\w.-]*)/shift/shift\.html$")] | None = None


class _Alike(Shape):
    spearman: Number
    spearman_ci: Pair | None = None
    top10_overlap: Number
    top10_overlap_ci: Pair | None = None


class _Agreement(Shape):
    traces: Count
    behaviours: dict[str, _Alike]


class _Mean(Shape):
    mean: Number | None
    ci: Pair | None


class _Cell(Shape):
    name: str
    format: str
    kl: dict[str, _Mean]
    disagreement: dict[str, _Mean]
    nll_increase: dict[str, _Mean]


class _Validity(Shape):
    scorer: str
    scores_of: str
    format: str
    metric: str
    target: str
    spearman: Number | None
    spearman_ci: Pair | None
    spearman_ci_passages: Pair | None
    kendall: Number | None
    kendall_ci: Pair | None
    top10_overlap: Count | None
    top10_overlap_of: Count | None
    top10_overlap_chance: Number | None
    modules: Count


class Ablation(Shape):
    """ablation.json."""

    method: str
    tokens: dict[str, Number]
    cells: list[_Cell]
    validity: list[_Validity]
    scores: dict[str, dict[str, Number]]

    @model_validator(mode="after")
    def _complete(self) -> Ablation:
        for cell in self.cells:
            if (
                not {"all", *self.tokens} <= cell.kl.keys()
                or "all" not in cell.disagreement.keys() & cell.nll_increase.keys()
            ):
                raise ValueError(f"cells: {cell.name}: a target of tokens is missing")
        return self


class _Distilled(_Course):
    traces: Count
    tokens: Count
    validation_traces: Count
    steps: Count


class _Generated(Shape):
    traces: Count
    prompts: str
    max_new_tokens: Count


class _Annotated(Shape):
    own: bool
    by: str
    judge: str | None = None


class Summary(Shape):
    """summary.json."""

    recipe: str = ""
    title: str = ""
    model: str = ""
    evaluation: _Evaluation | None = None
    variants: dict[str, _Variant]  # no other artifact has them
    differences: dict[str, dict[str, _Difference]] | None = None
    benchmarks: _AllBenchmarks | None = None
    likelihood: _AllLikelihoods | None = None
    behaviours: dict[str, _Behaviour] | None = None
    provenance: dict[str, Any] | None = None
    shifts: dict[str, _Shift] | None = None
    agreement: _Agreement | None = None
    distilled: _Distilled | None = None
    generated: _Generated | None = None
    annotated: _Annotated | None = None
    # Folders in the run: a page links to them.
    pages: dict[str, Annotated[str, Field(pattern=r"^[a-z]+$")]] | None = None


def read_summary(path: Path) -> dict[str, Any]:
    """Read summary.json.

    Raises UserError where it is missing, broken, of another schema version or shape.
    """
    return check(artifacts.read_versioned(path), path, Summary)


def read_benchmarks(path: Path) -> dict[str, Any]:
    """Read benchmarks.json; raises as ``read_summary``."""
    return check(artifacts.read_versioned(path), path, Benchmarks)


def read_likelihood(path: Path) -> dict[str, Any]:
    """Read likelihood.json; raises as ``read_summary``."""
    return check(artifacts.read_versioned(path), path, Likelihood)


def read_fidelity(path: Path) -> dict[str, Any]:
    """Read result.json; raises as ``read_summary``."""
    return check(artifacts.read_versioned(path), path, Fidelity)


def read_ablation(path: Path) -> dict[str, Any]:
    """Read ablation.json; raises as ``read_summary``."""
    return check(artifacts.read_versioned(path), path, Ablation)
