"""Packed modules of AWQ, in AutoAWQ's GEMM version: 4-bit codes packed along the rows of the transposed weight.

Read in casper-hansen/AutoAWQ (awq/modules/linear/gemm.py, awq/utils/packing_utils.py), in the loaders of vLLM 0.33,
SGLang 0.5.23 and transformers 5.23, and in GPTQModel's. A word holds eight rows, those of even place before those of
odd place. Zero points are stored as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from mixprec.checkpoint.packings.gptq import FREE as FREE_OF_GPTQ
from mixprec.checkpoint.packings.packing import Packing, scale_type
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.said import Grid as SaidGrid
from mixprec.checkpoint.said import GroupSize, Nothing, Said
from mixprec.core.headers import Entry
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import Format
from mixprec.numerics.words import WORD

CODES, ZEROS, SCALES = "qweight", "qzeros", "scales"
#: The only width, and codes in a word.
BITS: Final = 4
PER_WORD: Final = WORD // BITS
#: Which of eight rows lies at which place of a word, lowest bits first.
ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
#: The version that is read and written; others (gemv, gemv_fast, llm-awq's own) lie otherwise.
VERSION: Final = "gemm"
#: What GPTQModel's patterns of modules that are not quantized begin with; it looks at nothing else.
KEPT: Final = "-:"
_VERSIONS: Final = ("version", "format", "checkpoint_format")
#: Keys that say which kernel runs codes or how they were found; GPTQ's too, as transformers says all of them.
_FREE: Final = FREE_OF_GPTQ | {"do_fuse", "fuse_max_seq_len", "modules_to_fuse", "sym"}


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _only_kept(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for pattern in value:
        if not pattern.startswith(KEPT):
            raise ValueError(
                f"{pattern[:80]!r} gives modules another grid, which AWQ's layout has not; only {KEPT} is read"
            )
    return value


Version = Annotated[Literal["gemm"] | None, BeforeValidator(_lower)]


class Config(Said):
    """What AutoAWQ, transformers 5 (AwqConfig) and GPTQModel say of packed weights."""

    quant_method: Literal["awq"]
    method: Literal["awq"] | None = None
    bits: Literal[4]
    group_size: GroupSize
    zero_point: Literal[True] = True
    version: Version = None
    format: Version = None
    checkpoint_format: Version = None
    modules_to_not_convert: list[str] | None = None
    lm_head: Literal[False] | None = None
    dynamic: Annotated[dict[str, dict[str, Any]], AfterValidator(_only_kept)] | None = None
    pack_dtype: Literal["int32"] = "int32"
    adapter: Nothing = None
    rotation: Nothing = None

    @model_validator(mode="before")
    @classmethod
    def _needed(cls, said: Any) -> Any:
        return {key: value for key, value in said.items() if key not in _FREE} if isinstance(said, dict) else said

    @classmethod
    def unreadable(cls, said: Mapping[str, Any]) -> str | None:
        """The key that names another version, which packs otherwise, or another backend's."""
        if str(said.get("backend")).lower() == "llm-awq":
            return "backend"
        return next((key for key in _VERSIONS if said.get(key) and str(said[key]).lower() != VERSION), None)

    def grid(self, module: Linear, patterns: Matcher) -> SaidGrid | None:
        """What is said of a module; None where it is not quantized: AutoAWQ and vLLM look for parts of names, GPTQModel
        for patterns."""
        if not module.layer or any(name in module.address for name in self.modules_to_not_convert or ()):
            return None
        if any(patterns.match(pattern.removeprefix(KEPT), module.address) for pattern in self.dynamic or ()):
            return None
        return SaidGrid(BITS, self.group_size, symmetric=False)


def _shapes(module: Linear, format: Format) -> dict[str, Sequence[tuple[int, ...]]]:
    return {name: [each.shape] for name, each in _tensors(module, format, "F16").items()}


def _tensors(module: Linear, format: Format, dtype: str) -> dict[str, Entry]:
    """What is written here, by names within the module."""
    rows, columns = module.out_features, module.in_features
    groups = format.groups(columns)
    return {
        CODES: Entry("I32", (columns, rows // PER_WORD)),
        ZEROS: Entry("I32", (groups, rows // PER_WORD)),
        SCALES: Entry(scale_type(dtype), (groups, rows)),
    }


PACKING = Packing(
    mark=CODES,
    parts=frozenset({CODES, ZEROS, SCALES}),
    said=Config,
    shapes=_shapes,
    tensors=_tensors,
)
