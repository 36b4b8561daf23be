"""Packed modules of compressed-tensors, pack-quantized: codes as a dense stream of bits along each row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

from mixprec.checkpoint.packings.packing import Packing, scale_type
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.said import Grid as SaidGrid
from mixprec.checkpoint.said import GroupSize, Nothing, Said, Strict
from mixprec.core.headers import Entry
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.words import WORD, words

PACKED, SCALE, SHAPE, ZERO = "weight_packed", "weight_scale", "weight_shape", "weight_zero_point"
#: Which column is in which group, where their order is another one.
COLUMNS = "weight_g_idx"
#: Formats of the library that are read; in mixed ones each group names its own.
_FORMATS = frozenset({"pack-quantized", "mixed-precision"})
#: The class of an embedding; all other matrices are linear modules.
EMBEDDING: Final = "Embedding"


class Weights(Strict):
    """How a group's weights are quantized."""

    num_bits: int
    type: Literal["int"] = "int"
    symmetric: bool = True
    strategy: Literal["group", "channel"]
    group_size: GroupSize | None = None
    dynamic: Literal[False] = False
    # Which columns belong to which group stands in the tensors (weight_g_idx), and is read there.
    actorder: Literal["group", "weight", "static", "dynamic", False] | None = None
    block_structure: Nothing = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    observer: str | None = None
    observer_kwargs: dict[str, Any] | None = None

    @property
    def grid(self) -> SaidGrid:
        """Its numbers; groups of 0 where their size is missing."""
        return SaidGrid(self.num_bits, self.group_size or 0 if self.strategy == "group" else WHOLE_ROW, self.symmetric)


class Group(Strict):
    """One of ``config_groups``."""

    targets: list[str]
    weights: Weights | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: Literal["pack-quantized"] | None = None


class Config(Said):
    """What config.json says of packed weights: keys as in compressed-tensors 0.19 (QuantizationConfig)."""

    quant_method: Literal["compressed-tensors"]
    format: Literal["pack-quantized", "mixed-precision"]
    config_groups: dict[str, Group]
    # Before 0.9 packed weights were called frozen: both say that the codes are final.
    quantization_status: Literal["compressed", "frozen"] = "compressed"
    ignore: list[str] | None = None
    kv_cache_scheme: dict[str, Any] | None = None
    transform_config: Nothing = None
    sparsity_config: Nothing = None
    global_compression_ratio: float | None = None
    version: str | None = None

    @classmethod
    def unreadable(cls, said: Mapping[str, Any]) -> str | None:
        """The key of a format, of all groups or of a single one, that is not that of packed weights."""
        groups = said.get("config_groups")
        each = groups.items() if isinstance(groups, dict) else ()
        named = [("format", said), *((f"config_groups.{n}.format", g) for n, g in each if isinstance(g, dict))]
        return next((k for k, n in named if n.get("format") is not None and str(n["format"]) not in _FORMATS), None)

    def grid(self, module: Linear, patterns: Matcher) -> SaidGrid | None:
        """What is said of a module; None where it is not quantized."""
        kind = EMBEDDING if module.kind == "embedding" else "Linear"
        if target(self.ignore or (), module.address, patterns, kind) is not None:
            return None
        weights = {each: group.weights for group in self.config_groups.values() for each in group.targets}
        chosen = weights.get(target(weights, module.address, patterns, kind) or "")
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


def target(targets: Collection[str], address: str, patterns: Matcher, kind: str = "Linear") -> str | None:
    """Of ``targets`` that mean the module ``address`` of the class ``kind`` the one that compressed-tensors takes
    (match_targets): a name before a pattern before a class. None where there is none."""
    if address in targets:
        return address
    for each in sorted(targets):
        if each.startswith("re:") and patterns.match(each.removeprefix("re:"), address):
            return each
    return next((name for name in (kind, "Module") if name in targets), None)


def padded_words(columns: int, bits: int) -> int:
    """Words of a row in which no code lies across two."""
    return -(-columns // (WORD // bits))


def _shapes(module: Linear, format: Format) -> dict[str, Sequence[tuple[int, ...]]]:
    usual = {name: [each.shape] for name, each in _tensors(module, format, "BF16").items()}
    padded = (module.out_features, padded_words(module.in_features, format.bits))
    return {**usual, PACKED: [*usual[PACKED], padded], COLUMNS: [(module.in_features,)]}


def _tensors(module: Linear, format: Format, dtype: str) -> dict[str, Entry]:
    """What is written here, by names within the module."""
    rows, columns = module.out_features, module.in_features
    groups = format.groups(columns)
    found = {
        PACKED: Entry("I32", (rows, words(columns, format.bits))),
        SCALE: Entry(scale_type(dtype), (rows, groups)),
        SHAPE: Entry("I64", (2,)),
    }
    if not format.symmetric:
        found[ZERO] = Entry("I32", (words(rows, format.bits), groups))
    return found


PACKING = Packing(
    mark=PACKED,
    parts=frozenset({PACKED, SCALE, SHAPE, ZERO, COLUMNS}),
    columns=COLUMNS,
    said=Config,
    shapes=_shapes,
    tensors=_tensors,
)
