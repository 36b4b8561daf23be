"""The map of a decoder that no table describes: what transformers builds of its configuration, looked at.

The model is built without weights. Its linear modules are those of torch, the experts' too (models/experts.py); which
of them receive one tensor is seen in a pass of shapes through the model. Where a scale on that tensor could fold isn't
seen, and not guessed (``arch.KNOWN`` says it of some families).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.core.upstream import first_line, quiet
from mixprec.models.arch import KNOWN
from mixprec.models.arch.family import Sizes
from mixprec.models.decoder import Block, Decoder
from mixprec.models.discover.blocks import block_of, heads_of, is_norm
from mixprec.models.discover.building import as_config, empty, structure_of
from mixprec.models.discover.checks import check_around, check_labels, check_own, check_share
from mixprec.models.discover.passing import passed
from mixprec.models.renames import Names
from mixprec.models.sizes import value_of

#: Structure -> its map, and how checkpoints name its tensors.
_found: dict[str, tuple[Decoder, Names]] = {}


def map_of(config: PretrainedConfig | Mapping[str, Any], where: str) -> Decoder:
    """The map, made once for each configuration; raises UserError as ``discovered``."""
    return _known(config, where)[0]


def renaming_of(config: PretrainedConfig | Mapping[str, Any], where: str) -> Names:
    """How names in checkpoints become the model's; raises UserError as ``discovered``."""
    return _known(config, where)[1]


def _known(config: PretrainedConfig | Mapping[str, Any], where: str) -> tuple[Decoder, Names]:
    made = as_config(config, where)
    key = structure_of(made)
    if key not in _found:
        found = _found[key] = discovered(made, where)
        if found[0].stopped:
            console.print(
                f"{where}: {made.model_type}: which modules share an input is not known, {found[0].stopped}; each is a "
                "group by itself",
                soft_wrap=True,
            )
    return _found[key]


def discovered(config: PretrainedConfig, where: str) -> tuple[Decoder, Names]:
    """The map of the model that transformers builds of ``config``, and how checkpoints name its tensors.

    ``where`` names it in errors.

    Raises UserError for configurations that no model can be built of, and for what is no decoder of linear modules.
    """
    try:
        with quiet(), torch.device("meta"):
            model = empty(config)
    except Exception as problem:  # values that don't fit each other break it in many ways
        raise UserError(f"{where}: config.json describes no model that can be built ({first_line(problem)})") from None
    text = config.get_text_config(decoder=True)
    embedding, head = (
        _name_of(model, module) for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    body = embedding.rpartition(".")[0]
    around = dict(model.get_submodule(body).named_children())
    lists = [name for name, module in around.items() if isinstance(module, nn.ModuleList)]
    blocks_path = next((f"{body}.{name}" for name in lists if len(around[name]) == text.num_hidden_layers), None)
    if blocks_path is None or not head:
        raise UserError(
            f"{where}: {type(model).__name__} is no decoder of blocks with an embedding and a head beside them"
        )
    norm = _last_norm(around, text.hidden_size)
    if norm is None:
        raise UserError(f"{where}: {type(model).__name__} has no norm behind its blocks that is known here")
    seen = passed(model, text, body, blocks_path, where)
    blocks = tuple(
        block_of(block, index, f"{blocks_path}.{index}", seen, KNOWN.get(text.model_type), text)
        for index, block in enumerate(model.get_submodule(blocks_path))
    )
    if not any(block.groups for block in blocks):
        raise UserError(
            f"{where}: {type(model).__name__} has no linear modules in its blocks; there is nothing to compress"
        )
    check_labels(blocks, where)
    check_own(model, blocks, f"{where}: {type(model).__name__}")
    check_around(
        model.get_submodule(body), model.get_submodule(blocks_path), blocks, f"{where}: {type(model).__name__}"
    )
    check_share(model.get_submodule(blocks_path), blocks, f"{where}: {type(model).__name__}")
    used = {embedding.rpartition(".")[2], blocks_path.rpartition(".")[2], norm}
    decoder = Decoder(
        architecture=config.model_type,
        blocks=blocks,
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        blocks_path=blocks_path,
        embedding=embedding,
        around=tuple(f"{body}.{name}" for name, module in around.items() if name not in used and _holds(module)),
        norm=f"{body}.{norm}",
        head=head,
        sizes=_sizes(text, blocks),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        chosen=_chosen(text),
        parts=seen.parts,
        expert_groups=_number(text, "n_group", "num_expert_group"),
        chosen_groups=_number(text, "topk_group"),
        unread=tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
    )
    return decoder, Names(model)


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    return next((name for name, each in model.named_modules() if each is module), "")


def _last_norm(around: Mapping[str, nn.Module], width: int) -> str | None:
    """The norm behind the blocks: the last one among the modules around them."""
    norms = [name for name, module in around.items() if is_norm(module, width)]
    return norms[-1] if norms else None


def _holds(module: nn.Module) -> bool:
    """Whether a module has anything that lies on a device."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _chosen(text: PretrainedConfig) -> int:
    """Routed experts of a token."""
    return _number(text, "num_experts_per_tok", "top_k_experts")


def _number(text: PretrainedConfig, *keys: str) -> int:
    """What the first of ``keys`` that a configuration has says; 1 where it has none."""
    return int(next((value for key in keys if (value := value_of(text, key))), 1))


def _sizes(text: PretrainedConfig, blocks: Iterable[Block]) -> Sizes:
    """Widths; ``intermediate`` is what a token leaves inside the widest block beside hidden states, over 4."""
    heads, keys, size = heads_of(text)
    chosen = _chosen(text)

    def inside(block: Block) -> int:
        outputs = [linear.out_features for linear in block.linears if linear.expert is None]
        of_one = [linear.out_features for linear in block.linears if linear.expert == 0]
        return sum(outputs) + chosen * sum(of_one)

    widest = max((inside(block) for block in blocks), default=0)
    return Sizes(text.hidden_size, max(1, math.ceil(widest / 4)), heads * size, keys * size, size, text.vocab_size)
