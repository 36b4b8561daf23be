"""The map of a decoder that no table describes: what transformers builds of its configuration, looked at.

The model is built without weights. Its linear modules are those of torch, the experts' too (models/experts.py); which
of them receive one tensor is seen in a pass of shapes through the model. Where a scale on that tensor could fold isn't
seen, and not guessed (``arch.KNOWN`` says it of some families).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    DynamicCache,
    PretrainedConfig,
)

from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line, quiet
from mixprec.models.arch import KNOWN
from mixprec.models.arch.family import Known, Sizes
from mixprec.models.decoder import Block, Decoder, Group, Linear, Norm, Nowhere, Rows
from mixprec.models.experts import Experts, unstack
from mixprec.models.labels import place_of
from mixprec.models.renames import Names

#: Kinds of linears that share an input -> what runtimes call the one matrix that they make of them.
_FUSED: Final = {("q", "k", "v"): "qkv_proj", ("gate", "up"): "gate_up_proj"}
#: Linear modules that choose among experts, or weigh what a shared one puts out: they stay as they are.
_ROUTERS: Final = frozenset({"router", "gate", "shared_expert_gate", "router_gate"})


def class_of(config: PretrainedConfig) -> type[Any] | None:
    """The class that transformers builds for text out of a configuration, a decoder inside a multimodal model too."""
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    # The text model of a wrapper wants another configuration.
    for mapping in mappings if config.get_text_config(decoder=True) is config else reversed(mappings):
        if type(config) in mapping:
            found: Any = mapping[type(config)]
            chosen: type[Any] = found[0] if isinstance(found, tuple) else found
            return chosen
    return None


def empty(config: PretrainedConfig, dtype: torch.dtype | None = None) -> Any:
    """The model of a configuration without weights, in evaluation mode, its experts as modules; buffers lie where the
    context says."""
    kind = class_of(config)
    assert kind is not None  # check_architecture saw to it
    model = kind._from_config(config, **({} if dtype is None else {"dtype": dtype})).eval()
    unstack(model)
    return model


#: Keys of configurations that say nothing of what a model is made of.
_NO_STRUCTURE: Final = frozenset(
    ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache",
     "quantization_config")
)  # fmt: skip
_found: dict[str, tuple[Decoder, Names]] = {}


def map_of(config: PretrainedConfig | Mapping[str, Any], where: str) -> Decoder:
    """The map, made once for each configuration; raises UserError as ``discovered``."""
    return _known(config, where)[0]


def renaming_of(config: PretrainedConfig | Mapping[str, Any], where: str) -> Names:
    """How names in checkpoints become the model's; raises UserError as ``discovered``."""
    return _known(config, where)[1]


def _known(config: PretrainedConfig | Mapping[str, Any], where: str) -> tuple[Decoder, Names]:
    made = as_config(config, where)
    said = {name: value for name, value in made.to_dict().items() if name not in _NO_STRUCTURE}
    key = json.dumps(said, sort_keys=True, default=str)
    if key not in _found:
        _found[key] = discovered(made, where)
    return _found[key]


def as_config(config: PretrainedConfig | Mapping[str, Any], where: str) -> PretrainedConfig:
    """A configuration as transformers' object. Raises UserError for what it refuses, and for no text decoder."""
    if isinstance(config, PretrainedConfig):
        made = config
    else:
        said = {key: _numbers(value) for key, value in config.items()}
        kind = said.pop("model_type", None)
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise UserError(f"{where}: architecture {kind!r} is not known to transformers {transformers.__version__}")
        try:
            with quiet():
                made = CONFIG_MAPPING[kind].from_dict(said)
        except Exception as problem:  # values of wrong types break it in many ways
            raise UserError(f"{where}: no usable configuration ({first_line(problem)})") from None
    if made.is_encoder_decoder:
        raise UserError(f"{where}: {made.model_type} is an encoder-decoder; only decoders are compressed")
    if class_of(made) is None:
        raise UserError(f"{where}: transformers builds no language model of the architecture {made.model_type!r}")
    return made


def _numbers(value: Any) -> Any:
    """What transformers writes into config.json for numbers that JSON has not, read back: {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        only = value.get("__float__")
        return (
            float(only)
            if only is not None and len(value) == 1
            else {key: _numbers(each) for key, each in value.items()}
        )
    return [_numbers(each) for each in value] if isinstance(value, list) else value


def discovered(config: PretrainedConfig, where: str) -> tuple[Decoder, Names]:
    """The map of the model that transformers builds of ``config``, and how checkpoints name its tensors.

    ``where`` names it in errors.

    Raises UserError for configurations that no model can be built of, and for what is no decoder of linear modules.
    """
    try:
        with quiet(), torch.device("meta"):
            # As a file would have it: without what a running model was set to, such as attention of another kind.
            model = empty(type(config).from_dict(config.to_dict()))
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
    seen, through, parts = _seen(model, text, body, blocks_path)
    blocks = tuple(
        _block(block, index, f"{blocks_path}.{index}", seen, through, KNOWN.get(text.model_type), text)
        for index, block in enumerate(model.get_submodule(blocks_path))
    )
    if not any(block.groups for block in blocks):
        raise UserError(
            f"{where}: {type(model).__name__} has no linear modules in its blocks; there is nothing to compress"
        )
    _check_labels(blocks, where)
    _check_own(model, blocks, f"{where}: {type(model).__name__}")
    _check_share(model.get_submodule(blocks_path), blocks, f"{where}: {type(model).__name__}")
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
        parts=parts,
        expert_groups=_number(text, "n_group", "num_expert_group"),
        chosen_groups=_number(text, "topk_group"),
        unread=tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
    )
    return decoder, Names(model)


def _check_labels(blocks: Iterable[Block], where: str) -> None:
    """Raises UserError where one label would mean two modules."""
    met: dict[str, str] = {}
    for linear in (linear for block in blocks for linear in block.linears):
        other = met.setdefault(linear.label, linear.address)
        if other != linear.address:
            raise UserError(
                f"{where}: {other} and {linear.address} would both be called {linear.label}; the architecture's names "
                "are not understood"
            )


def _check_own(model: nn.Module, blocks: Iterable[Block], where: str) -> None:
    """Raises UserError where two blocks have one matrix: they are compressed one by one, for inputs of their own."""
    met: dict[int, str] = {}
    for linear in (linear for block in blocks for linear in block.linears if linear.expert is None):
        other = met.setdefault(id(model.get_parameter(linear.weight_name)), linear.address)
        if other != linear.address:
            raise UserError(
                f"{where} has one matrix in {other} and in {linear.address}; blocks that share weights are not "
                "compressed"
            )


def _check_share(blocks: nn.Module, known: Iterable[Block], where: str) -> None:
    """Raises UserError where the larger part of the blocks' weights is in matrices that no linear module holds, such as
    experts in stacks of a kind that transformers doesn't say: it would stay as it is, whatever a plan says."""
    others = [
        (f"{name}.{own}".partition(".")[2], parameter.numel())
        for name, module in blocks.named_modules()
        if not isinstance(module, nn.Linear)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.squeeze().dim() > 1
    ]
    linears = sum(linear.weights for block in known for linear in block.linears)
    whole = sum(count for _, count in others)
    if whole > linears:
        names = ", ".join(dict.fromkeys(name for name, _ in others))
        raise UserError(
            f"{where} has {whole / (whole + linears):.0%} of its blocks' weights in {names}, which are no linear "
            "modules and no experts of a kind that is known here; only linear modules are compressed"
        )


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    return next((name for name, each in model.named_modules() if each is module), "")


def _last_norm(around: Mapping[str, nn.Module], width: int) -> str | None:
    """The norm behind the blocks: the last one among the modules around them."""
    norms = [name for name, module in around.items() if _is_norm(module, width)]
    return norms[-1] if norms else None


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and (weight is None or tuple(weight.shape) == (width,))


def _holds(module: nn.Module) -> bool:
    """Whether a module has anything that lies on a device."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _is_router(name: str) -> bool:
    """By a linear module's path within its block; some routers are modules of several."""
    return any(part in _ROUTERS for part in name.split("."))


def _linears(block: nn.Module, path: str, index: int) -> dict[str, Linear]:
    """Path within the block -> its linear modules, routers left out."""
    found: dict[str, Linear] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) and not _is_router(name):
            place = place_of(f"{path}.{name}")
            found[name] = Linear(
                address=f"{path}.{name}",
                layer=index + 1,
                kind=place.kind,
                out_features=module.out_features,
                in_features=module.in_features,
                block=path,
                parameter=f"{name}.weight",
                expert=place.expert,
            )
    return found


def _block(
    block: nn.Module,
    index: int,
    path: str,
    seen: Mapping[str, tuple[str, ...]],
    through: bool,
    known: Known | None,
    text: PretrainedConfig,
) -> Block:
    linears = _linears(block, path, index)
    if through:  # what no pass calls is no module to the model: it takes the weight itself, and sees no other one
        linears = {name: linear for name, linear in linears.items() if f"{path}.{name}" in seen}
    experts = {name for name, module in block.named_modules() if isinstance(module, Experts)}
    groups, taken = [], set()
    places = {name: number for number, name in enumerate(linears)}
    for name in linears:
        if name in taken:
            continue
        # Of one parent, so that attention and MLP that read one norm are two groups: runtimes fuse each by itself.
        parent = name.rpartition(".")[0]
        together = [
            other
            for other in seen.get(f"{path}.{name}", (name,))
            if other in linears and other.rpartition(".")[0] == parent
        ]
        together.sort(key=places.__getitem__)
        taken.update(together)
        members = tuple(linears[other] for other in together)
        routed = next((where for where in experts if name.startswith(f"{where}.")), None)
        source = _source(members, linears, known, text, block)
        groups.append(Group(members, source, _fused(members, path, routed), routed))
    order = {name: number for number, name in enumerate(seen.get(path, ()))}
    groups.sort(key=lambda group: order.get(group[0].module, len(order)))
    norms = tuple(name for name, module in block.named_children() if _is_norm(module, text.hidden_size))
    return Block(index + 1, path, tuple(groups), norms)


def _source(
    members: Sequence[Linear],
    linears: Mapping[str, Linear],
    known: Known | None,
    text: PretrainedConfig,
    block: nn.Module,
) -> Norm | Rows | Nowhere | None:
    kinds = tuple(linear.kind for linear in members)
    shared = next((each for each in known.shared if each.kinds == kinds), None) if known else None
    if shared is None or known is None:
        return None
    if shared.norm is not None:
        there = {name for name, _ in block.named_modules()}
        if shared.norm not in there:
            return None
        readers = known.readers.get(shared.norm, ())
        return Norm(shared.norm, known.offset, tuple(name for name in readers if name in there))
    if shared.rows is None:
        return Nowhere()
    alike = (linear for linear in linears.values() if linear.expert == members[0].expert)
    source = next((linear for linear in alike if linear.kind == shared.rows), None)
    if source is None:
        return None
    if not shared.heads:
        return Rows(source)
    heads, keys, size = _heads(text)
    return Rows(source, size, heads // keys)


def _fused(members: Sequence[Linear], path: str, routed: str | None) -> str | None:
    """What runtimes make one matrix of: a layer's experts; q, k and v; gate and up."""
    if routed is not None:
        return f"{path}.{routed}"
    kinds = tuple(linear.kind.removeprefix("shared_") for linear in members)
    name = _FUSED.get(kinds)
    return f"{path}.{members[0].module.rpartition('.')[0]}.{name}" if name else None


def _seen(
    model: Any, text: PretrainedConfig, body: str, blocks_path: str
) -> tuple[dict[str, tuple[str, ...]], bool, int]:
    """Linear module -> paths within its block of those that receive the tensor that it does; a block's path -> its
    linear modules in the order in which they run. Whether the pass of shapes went through to the end; and of how many
    parts it is what a block returns, 0 where that is hidden states alone."""
    parts: list[int] = []
    tensors: dict[str, list[tuple[Tensor, list[str]]]] = {}
    order: dict[str, list[str]] = {}

    def see(path: str, name: str, received: Tensor) -> None:
        # The tensors are held, so that no other one takes the place of a freed one.
        met = tensors.setdefault(path, [])
        same = next((paths for tensor, paths in met if tensor is received), None)
        if same is None:
            met.append((received, same := []))
        same.append(name)
        order.setdefault(path, []).append(name)

    with ExitStack() as stack, torch.no_grad():
        for index, block in enumerate(model.get_submodule(blocks_path)):
            hook = block.register_forward_hook(
                lambda _block, _inputs, output: parts.append(len(output) if isinstance(output, tuple) else 0)
            )
            stack.callback(hook.remove)
            for name, module in block.named_modules(memo=_others(block)):
                if isinstance(module, nn.Linear):
                    hook = module.register_forward_pre_hook(
                        lambda _module, inputs, path=f"{blocks_path}.{index}", name=name: see(path, name, inputs[0])
                    )
                    stack.callback(hook.remove)
        try:
            tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
            with quiet():
                model.get_submodule(body)(input_ids=tokens, past_key_values=DynamicCache(config=text), use_cache=True)
            through = True
        except Exception:  # some mixers look at values; what wasn't reached is a group by itself
            through = False
    groups = {f"{path}.{name}": tuple(names) for path, met in tensors.items() for _, names in met for name in names}
    for index, block in enumerate(model.get_submodule(blocks_path)):
        path = f"{blocks_path}.{index}"
        for where, module in block.named_modules():
            if isinstance(module, Experts):
                _spread(groups, order.get(path, []), path, where, len(module))
    return groups | {path: tuple(dict.fromkeys(names)) for path, names in order.items()}, through, max(parts, default=0)


def _others(block: nn.Module) -> set[nn.Module]:
    """The experts of a block but for the first ones, which are called for all in a pass of shapes."""
    stacks = (module for module in block.modules() if isinstance(module, Experts))
    return {expert for stack in stacks for number, expert in enumerate(stack.children()) if number}


def _spread(groups: dict[str, tuple[str, ...]], order: list[str], path: str, where: str, count: int) -> None:
    """What was seen of the first expert of the ``count`` at ``where`` holds for all of them."""
    first = [name for name in order if name.startswith(f"{where}.0.")]
    for number in range(1, count):
        twin = {name: f"{where}.{number}.{name.removeprefix(f'{where}.0.')}" for name in first}
        groups |= {
            f"{path}.{twin[name]}": tuple(twin.get(other, other) for other in groups[f"{path}.{name}"])
            for name in first
        }
        order += twin.values()


def _heads(text: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, key heads, size of one."""
    heads = getattr(text, "num_attention_heads", None) or 1
    keys = getattr(text, "num_key_value_heads", None) or heads
    return heads, keys, getattr(text, "head_dim", None) or max(1, text.hidden_size // heads)


def _chosen(text: PretrainedConfig) -> int:
    """Routed experts of a token."""
    return _number(text, "num_experts_per_tok", "top_k_experts")


def _number(text: PretrainedConfig, *keys: str) -> int:
    """What the first of ``keys`` that a configuration has says; 1 where it has none."""
    return int(next((value for key in keys if (value := getattr(text, key, None))), 1))


def _sizes(text: PretrainedConfig, blocks: Iterable[Block]) -> Sizes:
    """Widths; ``intermediate`` is what a token leaves inside the widest block beside hidden states, over 4."""
    heads, keys, size = _heads(text)
    chosen = _chosen(text)

    def inside(block: Block) -> int:
        outputs = [linear.out_features for linear in block.linears if linear.expert is None]
        of_one = [linear.out_features for linear in block.linears if linear.expert == 0]
        return sum(outputs) + chosen * sum(of_one)

    widest = max((inside(block) for block in blocks), default=0)
    return Sizes(text.hidden_size, max(1, math.ceil(widest / 4)), heads * size, keys * size, size, text.vocab_size)
