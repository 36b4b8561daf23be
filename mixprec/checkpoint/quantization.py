"""What a checkpoint's ``quantization_config`` asks for: the two formats that are read, and refusals of all else.

An unknown key may change what runtimes compute, so it is refused. Quantized activations and caches leave the weights as
they are: they are not simulated, and ``notes`` says so.
Keys as in compressed-tensors 0.19 (QuantizationConfig), transformers 5 (GPTQConfig) and GPTQModel (QuantizeConfig).
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mixprec.checkpoint.patterns import Matcher
from mixprec.core.errors import UserError, from_pydantic
from mixprec.numerics.formats import WHOLE_ROW

CONFIG: Final = "config.json"
#: Where in config.json weights are said to be quantized.
_PLACES: Final = (
    ("quantization_config",),
    ("compression_config",),
    ("text_config", "quantization_config"),
    ("quantization",),
)
#: Files beside it in which quantizers say it, and their names.
_FILES: Final = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt"}
_NAMES: Final = {
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
}
#: What to do with weights that another method quantized.
REMEDY: Final = (
    "give the original model; packed weights are read of compressed-tensors (pack-quantized), GPTQ and GGUF files"
)
#: Formats of compressed-tensors; in mixed ones each group names its own.
_PACKED: Final = frozenset({"pack-quantized", "mixed-precision"})
#: Keys of GPTQ that say how codes were found or which kernel runs them; neither changes the codes.
_FREE: Final = frozenset(
    {
        "act_group_aware",
        "backend",
        "batch_size",
        "block_name_to_quantize",
        "cache_block_outputs",
        "damp_auto_increment",
        "damp_percent",
        "dataset",
        "desc_act",
        "disable_exllama",
        "exllama_config",
        "hyb_act",
        "max_input_length",
        "meta",
        "model_file_base_name",
        "model_name_or_path",
        "model_seqlen",
        "module_name_preceding_first_block",
        "mse",
        "pack_impl",
        "pad_token_id",
        "static_groups",
        "tokenizer",
        "true_sequential",
        "use_cuda_fp16",
        "use_exllama",
    }
)
#: Classes that a linear module is of, in the order in which compressed-tensors tries targets.
_CLASSES: Final = ("Linear", "Module")
#: Columns that share a scale; -1 (GPTQ's) is a whole row. 32 bits count the columns of any row.
_GroupSize = Annotated[int, Field(ge=-1, lt=2**31)]


class Grid(NamedTuple):
    """What config.json says of a packed module."""

    bits: int
    group_size: int
    symmetric: bool


def _nothing(value: Any) -> None:
    if value and not (isinstance(value, dict) and value.get("format") == "dense"):
        raise ValueError(
            f"{reprlib.repr(value)[:80]} changes what runtimes compute, in a way that is not read here; "
            "give a checkpoint without it"
        )


#: A key that is allowed only where it is empty.
_Nothing = Annotated[None, BeforeValidator(_nothing)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Weights(_Strict):
    """How a group's weights are quantized."""

    num_bits: int
    type: Literal["int"] = "int"
    symmetric: bool = True
    strategy: Literal["group", "channel"]
    group_size: _GroupSize | None = None
    dynamic: Literal[False] = False
    # Which columns belong to which group stands in the tensors (weight_g_idx), and is read there.
    actorder: Literal["group", "weight", "static", "dynamic", False] | None = None
    block_structure: _Nothing = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    observer: str | None = None
    observer_kwargs: dict[str, Any] | None = None

    @property
    def grid(self) -> Grid:
        """Its numbers; groups of 0 where their size is missing."""
        return Grid(self.num_bits, self.group_size or 0 if self.strategy == "group" else WHOLE_ROW, self.symmetric)


class Group(_Strict):
    """One of ``config_groups``."""

    targets: list[str]
    weights: Weights | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: Literal["pack-quantized"] | None = None


class CompressedTensors(_Strict):
    """compressed-tensors with packed weights."""

    quant_method: Literal["compressed-tensors"]
    format: Literal["pack-quantized", "mixed-precision"]
    config_groups: dict[str, Group]
    # Before 0.9 packed weights were called frozen: both say that the codes are final.
    quantization_status: Literal["compressed", "frozen"] = "compressed"
    ignore: list[str] | None = None
    kv_cache_scheme: dict[str, Any] | None = None
    transform_config: _Nothing = None
    sparsity_config: _Nothing = None
    global_compression_ratio: float | None = None
    version: str | None = None

    def grid(self, address: str, patterns: Matcher) -> Grid | None:
        """What is said of a module; None where it is not quantized."""
        if target(self.ignore or (), address, patterns) is not None:
            return None
        weights = {each: group.weights for group in self.config_groups.values() for each in group.targets}
        chosen = weights.get(target(weights, address, patterns) or "")
        return None if chosen is None else chosen.grid

    @property
    def notes(self) -> tuple[str, ...]:
        """What runtimes quantize besides weights."""
        groups = self.config_groups.values()
        said = {
            "what enters linears": any(group.input_activations for group in groups),
            "what linears put out": any(group.output_activations for group in groups),
            "the cache of keys and values": bool(self.kv_cache_scheme),
        }
        return tuple(
            f"runtimes also quantize {what}; that is not simulated here: weights alone are read and measured"
            for what, asked in said.items()
            if asked
        )


class Override(_Strict):
    """What ``dynamic`` says of some modules."""

    bits: int | None = None
    group_size: _GroupSize | None = None
    sym: bool | None = None


def _without_free(said: Any) -> Any:
    if not isinstance(said, dict):
        return said
    return {
        pattern: {key: value for key, value in own.items() if key not in _FREE} if isinstance(own, dict) else own
        for pattern, own in said.items()
    }


class Gptq(_Strict):
    """GPTQ as AutoGPTQ, GPTQModel and transformers write it."""

    quant_method: Literal["gptq"]
    method: Literal["gptq"] | None = None
    bits: int
    group_size: _GroupSize
    sym: bool = True
    checkpoint_format: Literal["gptq", "gptq_v2"] | None = None
    format: Literal["gptq", "gptq_v2"] | None = None
    dynamic: Annotated[dict[str, Override], BeforeValidator(_without_free)] | None = None
    modules_in_block_to_quantize: list[list[str] | str] | None = None
    pack_dtype: Literal["int32"] = "int32"
    lm_head: Literal[False] | None = None
    is_marlin_format: Literal[False] | None = None
    adapter: _Nothing = None
    rotation: _Nothing = None
    #: Nothing but weights is quantized.
    notes: ClassVar[tuple[str, ...]] = ()

    @property
    def shifted(self) -> bool:
        """Whether zero points are stored less one."""
        return (self.checkpoint_format or self.format or "gptq") == "gptq"

    def grid(self, address: str, patterns: Matcher) -> Grid | None:
        """What is said of a module; None where it is not quantized."""
        listed = self.modules_in_block_to_quantize
        names = [name for entry in listed or () for name in ([entry] if isinstance(entry, str) else entry)]
        if listed is not None and not any(f".{address}".endswith(f".{name}") for name in names):
            return None
        for pattern, own in (self.dynamic or {}).items():
            if patterns.match(re.sub("^[+-]:", "", pattern), address):
                if pattern.startswith("-:"):
                    return None
                return Grid(
                    self.bits if own.bits is None else own.bits,
                    self.group_size if own.group_size is None else own.group_size,
                    self.sym if own.sym is None else own.sym,
                )
        return Grid(self.bits, self.group_size, self.sym)


def target(targets: Collection[str], address: str, patterns: Matcher) -> str | None:
    """Of ``targets`` that mean the linear module ``address`` the one that compressed-tensors takes (match_targets): a
    name before a pattern before a class. None where there is none."""
    if address in targets:
        return address
    for each in sorted(targets):
        if each.startswith("re:") and patterns.match(each.removeprefix("re:"), address):
            return each
    return next((name for name in _CLASSES if name in targets), None)


def find(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a config.json says of quantization, wherever it stands; None where it says nothing.

    Raises UserError where that is no object, or two places say different things.
    """
    said: dict[str, dict[str, Any]] = {}
    for place in _PLACES:
        found: Any = config
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None and not isinstance(found, dict):
            raise UserError(f"{'.'.join(place)}: expected a JSON object, found {type(found).__name__}")
        if found:
            said[".".join(place)] = found
    first = next(iter(said), None)
    for name, other in said.items():
        if first is not None and other != said[first]:
            raise UserError(f"{name} says something else than {first}; remove the one that is wrong")
    return None if first is None else dict(said[first])


def described(said: Mapping[str, Any]) -> str:
    """Which quantizer that is: ``AWQ, 4 bits``."""
    method = str(said.get("quant_method") or ("MLX" if "group_size" in said else "an unknown method"))
    kind = next((said[key] for key in ("format", "bnb_4bit_quant_type", "fmt", "quant_algo") if said.get(key)), None)
    bits = next((said[key] for key in ("bits", "w_bit", "nbits") if said.get(key)), None)
    bits = bits or (4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None)
    return ", ".join([_NAMES.get(method, method), *([str(kind)] if kind else []), *([f"{bits} bits"] if bits else [])])


def _formats(said: Mapping[str, Any]) -> set[str]:
    """The formats that compressed-tensors' configuration names, for all groups and for single ones."""
    groups = said.get("config_groups")
    each = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    return {str(named["format"]) for named in (said, *each) if named.get("format") is not None}


def by_files(folder: Path) -> str | None:
    """Which quantizer left its own configuration beside config.json, or None."""
    return next((f"{name} ({file})" for file, name in _FILES.items() if (folder / file).is_file()), None)


def read(folder: Path, config: Mapping[str, Any]) -> CompressedTensors | Gptq | None:
    """What ``config``, the folder's config.json, says of its packed weights; None where there are none.

    Raises UserError for what another method quantized, naming it, and for keys and values that are not understood.
    """
    try:
        said = find(config)
    except UserError as problem:
        raise UserError(f"{folder / CONFIG}: {problem}") from None
    if said is None:
        return None
    quantizer = said.get("quant_method")
    readable = quantizer == "gptq" or (quantizer == "compressed-tensors" and _formats(said) <= _PACKED)
    if not readable or "quantization_config" not in config:
        raise UserError(f"{folder}: quantized already by {described(said)}, which is not read here; {REMEDY}")
    schema: type[CompressedTensors | Gptq] = CompressedTensors
    if quantizer == "gptq":
        schema, said = Gptq, _without_free({"": said})[""]
    try:
        return schema.model_validate(said)
    except ValidationError as problem:
        raise from_pydantic(problem, f"{folder / CONFIG}: quantization_config", schema) from None
