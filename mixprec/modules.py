"""The linear modules of a decoder: addresses, the paper's labels, selectors, fused groups.

The only place that knows module names. Works from a configuration alone: shapes come from the model built on
torch's meta device, so no weight is read.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixprec.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

#: Linear modules of one decoder block in the order of the paper's heatmap rows: kind -> path within the block.
KINDS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
#: Modules outside the blocks: first, last but one, last.
EMBEDDING, NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"
#: Norms of a decoder block; only Gemma 2 and 3 have all four.
BLOCK_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
#: Short names for several kinds at once, as in ``last_mlp``.
KIND_GROUPS = {"attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down"), "*": tuple(KINDS)}
#: Linears that share their input, and that vLLM fuses into one kernel.
FUSED = (("q", "k", "v"), ("gate", "up"))
#: The names that vLLM gives them, within the block.
FUSED_NAMES = {FUSED[0]: "self_attn.qkv_proj", FUSED[1]: "mlp.gate_up_proj"}
#: Where the blocks stand.
BLOCKS = "model.layers"
#: ``config.model_type`` of the decoders whose modules are named as in KINDS.
SUPPORTED_ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text")
#: Where a scale on a group's inputs is folded: group of kinds -> path within the block of the norm, or of the linear
#: whose rows become those inputs, one by one.
_LLAMA_SOURCES = {
    ("q", "k", "v"): "input_layernorm",
    ("o",): KINDS["v"],
    ("gate", "up"): "post_attention_layernorm",
    ("down",): KINDS["up"],
}
#: In these, post_attention_layernorm sees what attention puts out.
_GEMMA2_SOURCES = _LLAMA_SOURCES | {("gate", "up"): "pre_feedforward_layernorm"}
#: Architecture -> group of kinds -> source of its inputs.
SCALE_SOURCES = {
    "llama": _LLAMA_SOURCES,
    "qwen2": _LLAMA_SOURCES,
    "qwen3": _LLAMA_SOURCES,
    "mistral": _LLAMA_SOURCES,
    "gemma": _LLAMA_SOURCES,
    "gemma2": _GEMMA2_SOURCES,
    "gemma3_text": _GEMMA2_SOURCES,
}
#: Architectures whose norms multiply by 1 + weight.
OFFSET_NORMS = ("gemma", "gemma2", "gemma3_text")

#: Keys of a configuration -> the largest number that is taken for a model's: more would be built for hours.
_MOST = {
    "num_hidden_layers": 1_000,
    **dict.fromkeys(
        ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
        2**24,
    ),
    "max_position_embeddings": 2**40,
}
_LABEL = re.compile(r"(?P<layer>\d+|last|\*)_(?P<kind>[a-z*]+)")


@dataclass(frozen=True)
class LinearModule:
    """One linear module: ``address`` model.layers.31.mlp.up_proj, ``layer`` 32 (1-based), ``kind`` up."""

    address: str
    layer: int
    kind: str
    out_features: int
    in_features: int

    @property
    def label(self) -> str:
        """The paper's label, 1-based: ``32_up``."""
        return f"{self.layer}_{self.kind}"

    @property
    def weights(self) -> int:
        """Number of weights, the bias not counted."""
        return self.out_features * self.in_features

    @property
    def weight_name(self) -> str:
        """Name of the weight in a checkpoint."""
        return f"{self.address}.weight"


@dataclass(frozen=True)
class Inventory:
    """All parameters of a model: the linear modules in order, and what else takes space.

    ``other`` maps a parameter's name (embeddings, norms, biases, an untied head) to its number of elements.
    """

    linears: tuple[LinearModule, ...]
    other: dict[str, int]

    @property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return self.linears[-1].layer

    @property
    def widest_input(self) -> int:
        """Input columns of the widest linear module."""
        return max(module.in_features for module in self.linears)

    def __getitem__(self, address: str) -> LinearModule:
        return next(module for module in self.linears if module.address == address)


def check_architecture(config: PretrainedConfig, where: str) -> None:
    """Refuse decoders whose modules we can't name.

    Raises UserError listing the supported architectures; ``where`` says which model it was.
    """
    if config.model_type not in SUPPORTED_ARCHITECTURES:
        raise UserError(
            f"{where}: architecture {config.model_type!r} is not supported; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    for key, most in _MOST.items():
        value = getattr(config, key, None)
        if value is not None and not (isinstance(value, int) and 1 <= value <= most):
            raise UserError(f"{where}: config.json: {key}: {reprlib.repr(value)} is no number from 1 to {most:,}")


def address(layer: int, kind: str) -> str:
    """Full name of a module; ``layer`` is 1-based."""
    return f"model.layers.{layer - 1}.{KINDS[kind]}"


def parse_address(name: str) -> tuple[int | None, str]:
    """(1-based layer, kind) of a module's full name; the inverse of ``address`` for linear modules.

    Other modules are their own kind, and outside the blocks there is no layer: (None, "lm_head").
    """
    if not name.startswith("model.layers."):
        return None, name.rpartition(".")[2]
    layer, path = name.removeprefix("model.layers.").split(".", 1)
    return int(layer) + 1, next((kind for kind, known in KINDS.items() if known == path), path)


def inventory(config: PretrainedConfig) -> Inventory:
    """List every parameter of the model that ``config`` describes, without weights.

    Raises UserError for an unsupported architecture.
    """
    # They take seconds to import; who works on a plan, or with an inventory that is there, needs neither.
    import torch
    from transformers import AutoModelForCausalLM

    check_architecture(config, getattr(config, "name_or_path", "") or "model")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as problem:  # sizes that don't fit each other break it in many ways
        where = getattr(config, "name_or_path", "") or "model"
        raise UserError(f"{where}: config.json describes no model that can be built ({problem})") from None
    model.tie_weights()
    linears = linear_layers(model)
    listed = tuple(
        LinearModule(address(layer, kind), layer, kind, module.out_features, module.in_features)
        for (layer, kind), module in linears.items()
    )
    named = {module.weight_name for module in listed}
    # named_parameters lists a tied head once, under the embedding's name.
    other = {name: p.numel() for name, p in model.named_parameters() if name not in named}
    return Inventory(listed, other)


def linear_layers(model: nn.Module) -> dict[tuple[int, str], nn.Linear]:
    """The linear modules of a loaded model: (1-based layer, kind) -> nn.Linear, in order of layers, then KINDS."""
    layers: Any = model.get_submodule("model.layers")
    return {
        (index, kind): block.get_submodule(path)
        for index, block in enumerate(layers, 1)
        for kind, path in KINDS.items()
    }


def other_outputs(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Embeddings, norms and head of a loaded model, by full name in order, with the widths of their outputs.

    The norms within Qwen 3's and Gemma 3's attention, which see single heads, are not among them.
    """
    embedding: Any = model.get_submodule(EMBEDDING)
    head: Any = model.get_submodule(HEAD)
    layers: Any = model.get_submodule("model.layers")
    width = embedding.embedding_dim
    found = {EMBEDDING: (embedding, width)}
    for index, block in enumerate(layers):
        found |= {
            f"model.layers.{index}.{norm}": (block.get_submodule(norm), width)
            for norm in BLOCK_NORMS
            if hasattr(block, norm)
        }
    return found | {NORM: (model.get_submodule(NORM), width), HEAD: (head, head.out_features)}


def fused_groups(inventory: Inventory) -> list[tuple[LinearModule, ...]]:
    """Modules that share their input, block by block: (q, k, v), (o,), (gate, up), (down,)."""
    first = {kind: group for group in FUSED for kind in group}
    groups: dict[tuple[int, tuple[str, ...]], list[LinearModule]] = {}
    for module in inventory.linears:
        groups.setdefault((module.layer, first.get(module.kind, (module.kind,))), []).append(module)
    return [tuple(group) for group in groups.values()]


def select(modules: Sequence[LinearModule], selector: str) -> list[LinearModule]:
    """Modules that a selector names, in order.

    A selector is a label as the paper writes it (``32_up``), with ``last`` or ``*`` for the layer and ``attn``,
    ``mlp`` or ``*`` for the kind (``last_mlp``, ``*_gate``, ``last_*``), or a glob over addresses
    (``model.layers.3?.mlp.*``).

    Raises UserError where it matches nothing, with what was most likely meant.
    """
    label = _LABEL.fullmatch(selector)
    if label:
        last = max(module.layer for module in modules)
        layer = label["layer"]
        layers = set(range(1, last + 1)) if layer == "*" else {last if layer == "last" else int(layer)}
        kinds = KIND_GROUPS.get(label["kind"], (label["kind"],))
        found = [module for module in modules if module.layer in layers and module.kind in kinds]
    else:
        found = [module for module in modules if fnmatch.fnmatchcase(module.address, selector)]
    if not found:
        raise UserError(f"selector {selector!r} matches no module; {_suggest(modules, selector)}")
    return found


def _suggest(modules: Iterable[LinearModule], selector: str) -> str:
    names = [name for module in modules for name in (module.label, module.address)]
    last = names[-2].split("_")[0]
    near = difflib.get_close_matches(selector, names, n=3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return (
        f"{hint}layers are 1 to {last}, kinds {', '.join(KINDS)}, attn, mlp; "
        f"labels such as {last}_up, last_mlp, *_gate, or a glob such as {names[1].replace('.0.', '.*.')}"
    )
