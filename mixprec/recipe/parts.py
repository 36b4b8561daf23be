"""The parts of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mixprec.calibration.spec import CalibrationSpec
from mixprec.checkpoint.names import FormatName, check_format
from mixprec.checkpoint.runtimes import DeviceName, RuntimeName
from mixprec.compress.options import SolveOptions
from mixprec.core.errors import UserError
from mixprec.core.hubid import checked_id
from mixprec.evaluate.engines.serverspec import ServerSpec, of_a_recipe
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.importance.options import RESAMPLES, SWEEP_GB, Preset
from mixprec.plan.methods import Method
from mixprec.plan.rules import PlanSpec
from mixprec.plan.schema import GgmlText, ModulePlan, Plan, with_outside
from mixprec.recipe.engines import Engine
from mixprec.traces import annotators, store
from mixprec.traces.annotate import Rule
from mixprec.traces.annotators import Annotator
from mixprec.traces.judge.spec import JudgeSpec
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.tune.options import TuneSpec
from mixprec.walk.options import MEMORY_GB

if TYPE_CHECKING:
    from mixprec.checkpoint.base import CheckpointFormat
    from mixprec.models.decoder import Decoder
    from mixprec.models.model import Model


#: Servers as recipes name them.
RecipesJudge = Annotated[JudgeSpec, AfterValidator(of_a_recipe)]
RecipesServer = Annotated[ServerSpec, AfterValidator(of_a_recipe)]


class Part(BaseModel):
    """Unknown keys are errors, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Part):
    """The model to look into and to compress."""

    id: str = Field(description="bundled name, hub id, folder or GGUF file")
    revision: str | None = Field(None, description="hub revision; pin it")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type computed in")
    device: str = Field("cpu", description="cpu, cuda, mps, or auto for several GPUs")
    base_model: str | None = Field(None, description="id on the hub, for the model card of a local folder or GGUF file")

    @field_validator("base_model")
    @classmethod
    def _id(cls, value: str | None) -> str | None:
        try:
            return None if value is None else checked_id(value)
        except UserError as problem:
            raise ValueError(str(problem)) from None

    def as_model(self) -> Model:
        """The model itself."""
        from mixprec.models.model import Model  # recipes are read without it

        return Model(self.id, revision=self.revision, dtype=self.dtype, device=self.device)


class TracesSpec(Part):
    """Annotated traces, and the rule by which annotations become spans."""

    source: str = Field(description="bundled:NAME, data:PATH or a path to traces or spans (JSONL)")
    preset: Rule = Field("paper", description="span rule: paper, released or aligned")
    annotator: Annotator = Field("given", description=annotators.DESCRIPTION)
    train: tuple[str, ...] = Field(
        (), description="with classifier: annotated traces to learn from too, bundled:NAME or paths"
    )
    judge: RecipesJudge | None = Field(None, description="a language model annotates them, in the place of either")
    first: int | None = Field(None, ge=1, description="take only so many traces")

    @field_validator("train")
    @classmethod
    def _not_held_out(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if store.HELD_OUT in value:
            raise ValueError(f"{store.HELD_OUT} is what compressed models are judged by; learn from other traces")
        return value

    @model_validator(mode="after")
    def _one_annotator(self) -> TracesSpec:
        if self.train and self.annotator != "classifier":
            raise ValueError(f"train: annotator {self.annotator} learns nothing; set annotator: classifier")
        if self.judge is not None and self.annotator != "given":
            raise ValueError(f"annotator: {self.annotator} and judge exclude one another; leave one out")
        if self.judge is not None and self.preset == "released":
            raise ValueError("preset: released reads annotations of a file; a judge's are placed as they come in")
        return self


class ImportanceSpec(Part):
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


class BaseSpec(Part):
    """A model beside the recipe's own, such as what that was fine-tuned from."""

    id: str = Field(description="bundled name, hub id or folder")
    revision: str | None = Field(None, description="hub revision; pin it")

    def as_model(self, dtype: str = "float32", device: str = "cpu") -> Model:
        """The model itself."""
        from mixprec.models.model import Model  # recipes are read without it

        return Model(self.id, revision=self.revision, dtype=dtype, device=device)


class CompressSpec(SolveOptions):
    """How modules that are not kept are compressed."""

    method: Method = Field("rtn", description="the method of plans and rules that name none")
    calibration: CalibrationSpec | None = Field(None, description="what methods see that look at a linear's inputs")
    fine_tuned_from: BaseSpec | None = Field(
        None, description="the model's base: awq and the scorer updates weigh input channels by what changed since"
    )
    memory_gb: float = Field(
        MEMORY_GB, gt=0, description="of calibration states in memory, 10^9 bytes; more of them go to the disk"
    )
    tune_blocks: TuneBlocks | None = Field(None, description="tune each block's codes and scales by its output")
    tune: TuneSpec | None = Field(None, description="scales and norms tuned on the original's predictions, at the end")
    engine: Engine = Field("mixprec", description="who compresses: mixprec, or another quantizer")
    engine_settings: dict[Engine, dict[str, Any]] = Field({}, description="settings of other quantizers, by engine")

    @property
    def options(self) -> SolveOptions:
        """The settings of the methods alone."""
        return SolveOptions.model_validate(self.model_dump(include=set(SolveOptions.model_fields)))


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value  # YAML reads 0.32 as a number


class CheckpointSpec(Part):
    """What is written for each variant, and which runtime has to load it."""

    format: FormatName = Field("dense", description="how weights lie on disk")
    embedding: GgmlText | None = Field(
        None, description="gguf: its type in all plans; the same as a rule for embedding"
    )
    head: GgmlText | None = Field(None, description="gguf: of an output head of its own; the same as a rule for head")
    runtime: RuntimeName | None = Field(None, description="checked before any work: it has to load the checkpoint")
    version: Annotated[str, BeforeValidator(_text, json_schema_input_type=str | float)] | None = Field(
        None, description="of the runtime; default: the newest that is known"
    )
    device: DeviceName | None = Field(
        None, description="where it runs: cpu, apple, or a generation of GPUs; default: ampere, apple for mlx"
    )

    @property
    def written(self) -> CheckpointFormat:
        """How it is written."""
        from mixprec.checkpoint.formats import checkpoint_format  # brings torch, which reading a recipe doesn't need

        return checkpoint_format(self.format)

    def whole(self, plan: Plan, inventory: Decoder) -> Plan:
        """A variant's plan with what is said here of embedding and head. Raises UserError as ``with_outside`` does."""
        return with_outside(plan, inventory, self.outside)

    @property
    def outside(self) -> dict[str, ModulePlan]:
        """Lines for plans that ``embedding`` and ``head`` stand for, by what they are of."""
        said = {"embedding": self.embedding, "head": self.head}
        return {
            name: ModulePlan(format=kind, method="ggml", why=f"checkpoint.{name}")
            for name, kind in said.items()
            if kind is not None
        }

    @model_validator(mode="after")
    def _possible(self) -> CheckpointSpec:
        try:
            check_format(self.format, self.embedding, self.head)
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
    servers: dict[str, RecipesServer] = Field(
        {}, description="variant -> the server that answers its benchmarks, in the place of the engine"
    )

    @model_validator(mode="after")
    def _something(self) -> EvaluateSpec:
        if self.traces is None and self.text is None and not self.benchmarks:
            raise ValueError("nothing to evaluate on; give traces, text or benchmarks")
        if self.servers and not self.benchmarks:
            raise ValueError("servers: they answer benchmarks, and none is given")
        if self.servers and self.protocol == "likelihood":
            raise ValueError("servers: a server gives no logits of a text; take protocol: generate")
        if self.servers and self.thinking_budget is not None:
            raise ValueError("servers: a server doesn't stop a thinking; leave thinking_budget out")
        return self

    @property
    def asking(self) -> ProtocolSpec:
        """The benchmarks' part alone."""
        return ProtocolSpec.model_validate(self.model_dump(include=set(ProtocolSpec.model_fields)))


class Variant(Part):
    """One plan over the recipe's model."""

    description: str = ""
    plan: PlanSpec
    engine: Engine | None = Field(None, description="who compresses this variant; default: compress.engine")
    tune: TuneSpec | Literal[False] | None = Field(None, description="in place of compress.tune; false: none")
    tune_blocks: TuneBlocks | Literal[False] | None = Field(None, description="in place of compress.tune_blocks")
