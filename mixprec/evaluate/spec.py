"""What a recipe says of benchmarks: which ones, by which engine, how often and how long."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Sampling
from mixprec.evaluate.engines.budget import Budget
from mixprec.traces import thinking

#: Benchmarks by name; ``mixprec.evaluate.benchmarks`` has them. With their sizes, for ``mixprec explain``.
SIZES = {
    "aime_2024": 30, "folio": 203, "temporal_sequences": 250, "musique": 100, "musique_rag": 100, "aime_2025": 30,
    "aime_120": 120, "math_500": 500, "gpqa_diamond": 198,
}  # fmt: skip
BenchmarkName = Literal[
    "aime_2024", "folio", "temporal_sequences", "musique", "musique_rag", "aime_2025", "aime_120", "math_500",
    "gpqa_diamond",
]  # fmt: skip


#: What finds the passages of musique_rag, and how many (the paper's Appendix L).
EMBEDDER, NEAREST = "BAAI/bge-base-en-v1.5", 10


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BenchmarkSpec(_Part):
    """One benchmark, from the hub or a file."""

    name: BenchmarkName = Field(description="of a benchmark")
    source: str | None = Field(None, description="JSONL with the hub's columns (path or data:PATH), or hub:OWNER/NAME")
    revision: str | None = Field(None, description="commit of the hub's dataset")
    embedder: str = Field(EMBEDDER, min_length=1, description="musique_rag: embedding model, a hub id or a folder")
    embedder_revision: str | None = Field(None, description="musique_rag: commit of the embedding model")
    nearest: int = Field(NEAREST, ge=1, description="musique_rag: passages in front of a question")


class EngineSpec(_Part):
    """What generates."""

    kind: Literal["transformers", "vllm"] = Field("transformers", description="transformers or vllm")
    batch: int = Field(16, ge=1, description="transformers: rows generated at once")
    max_context: int | None = Field(None, ge=2, description="vllm: longest prompt and output together, in tokens")
    gpus: int = Field(1, ge=1, description="vllm: GPUs that the model is split over")
    memory: float = Field(0.9, gt=0, le=1, description="vllm: share of a GPU's memory")


def _named(value: Any) -> Any:
    """A benchmark may be given by its name alone."""
    return {"name": value} if isinstance(value, str) else value


#: Keys that say nothing of what is generated.
OF_LIKELIHOOD = ("protocol", "stub", "after")


class ProtocolSpec(_Part):
    """Benchmarks and how they are run; the paper's protocol by default (arXiv 2504.02010, Appendix D)."""

    benchmarks: tuple[
        Annotated[BenchmarkSpec, BeforeValidator(_named, json_schema_input_type=BenchmarkName | BenchmarkSpec)], ...
    ] = Field((), description="names, or mappings with name, source and revision")
    protocol: Literal["generate", "likelihood"] = Field(
        "generate", description="generate: outputs are scored, as in the paper; likelihood: that of each answer"
    )
    stub: str | None = Field(None, min_length=1, description="likelihood: what stands in front of the answer")
    after: str | None = Field(
        None, description="likelihood: folder of mixprec bench's outputs, whose thinking is taken"
    )
    engine: EngineSpec = EngineSpec()
    prompts: Literal["paper", "chat"] = Field("paper", description="the paper's prompts, or the model's chat template")
    template: dict[str, Any] = Field({}, description="chat: arguments of the template, as enable_thinking")
    thinking_budget: int | None = Field(
        None, ge=1, description="longest thinking, in tokens; then what ends it is written in the model's place"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="one pass over the benchmarks for each")
    max_new_tokens: int = Field(32_768, ge=1, description="longest output, in tokens")
    temperature: float = Field(0.6, ge=0, description="of the sampling; 0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="share of the probability that is drawn from")
    limit: int | None = Field(None, ge=1, description="take only so many questions of each benchmark")
    think_tags: tuple[str, ...] = Field((), description="further tags around a model's thinking, as '<plan>,</plan>'")

    @field_validator("benchmarks")
    @classmethod
    def _once(cls, value: tuple[BenchmarkSpec, ...]) -> tuple[BenchmarkSpec, ...]:
        names = [each.name for each in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"benchmarks: {twice} stands twice")
        return value

    @model_validator(mode="after")
    def _one_protocol(self) -> ProtocolSpec:
        if self.protocol == "generate" and self.after is not None:
            raise ValueError("after belongs to protocol: likelihood")
        if self.protocol == "likelihood" and self.engine.kind != "transformers":
            raise ValueError(f"protocol: likelihood needs engine transformers, not {self.engine.kind}")
        if self.protocol == "likelihood" and self.thinking_budget is not None:
            raise ValueError("thinking_budget belongs to protocol: generate; by likelihood nothing is thought")
        if self.template and self.prompts != "chat":
            raise ValueError(f"template: {', '.join(self.template)}: it is the chat template's; set prompts: chat")
        return self

    @field_validator("template")
    @classmethod
    def _of_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, each in value.items():
            try:
                json.dumps(each, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(f"{name}: {each!r} can't be written as JSON; put it in quotes") from None
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"seeds: {list(value)} has a seed twice; a second pass with it would be the first again")
        return value

    @field_validator("think_tags")
    @classmethod
    def _two_tags(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            thinking.parsed(value)
        except UserError as problem:
            raise ValueError(str(problem).removeprefix("think_tags: ")) from None
        return value

    @property
    def tags(self) -> tuple[thinking.Tag, ...]:
        """What opens and closes a thinking."""
        return thinking.parsed(self.think_tags)

    @property
    def budget(self) -> Budget | None:
        """Of each output's thinking."""
        return None if self.thinking_budget is None else Budget(self.thinking_budget, self.tags)

    @property
    def unsaid(self) -> set[str]:
        """Keys that came later and say nothing here: left out of fingerprints, so that what there was stays valid."""
        return {name for name in ("template", "thinking_budget") if not getattr(self, name)}

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p)

    def outputs(self) -> dict[str, int]:
        """Benchmark -> outputs of one model: questions times seeds; of likelihoods, questions."""
        passes = 1 if self.protocol == "likelihood" else len(self.seeds)
        return {each.name: min(SIZES[each.name], self.limit or SIZES[each.name]) * passes for each in self.benchmarks}
