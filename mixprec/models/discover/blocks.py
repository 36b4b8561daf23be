"""One block's linear modules, in groups that share an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from torch import nn
from transformers import PretrainedConfig

from mixprec.models.arch.family import Known
from mixprec.models.decoder import Block, Group, Linear, Norm, Nowhere, Rows
from mixprec.models.discover.passing import Seen
from mixprec.models.experts import Experts
from mixprec.models.labels import place_of
from mixprec.models.sizes import value_of

#: Kinds of linears that share an input -> what runtimes call the one matrix that they make of them.
_FUSED: Final = {("q", "k", "v"): "qkv_proj", ("gate", "up"): "gate_up_proj"}
#: Linear modules that choose among experts, or weigh what a shared one puts out: they stay as they are.
_ROUTERS: Final = frozenset({"router", "gate", "shared_expert_gate", "router_gate"})


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


def block_of(block: nn.Module, index: int, path: str, seen: Seen, known: Known | None, text: PretrainedConfig) -> Block:
    """The map of the model's block number ``index``, from 0, at ``path``."""
    linears = _linears(block, path, index)
    if not seen.stopped:  # what no pass calls is no module to the model: it takes the weight itself
        linears = {name: linear for name, linear in linears.items() if f"{path}.{name}" in seen.together}
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
            for other in seen.together.get(f"{path}.{name}", (name,))
            if other in linears and other.rpartition(".")[0] == parent
        ]
        together.sort(key=places.__getitem__)
        taken.update(together)
        members = tuple(linears[other] for other in together)
        routed = next((where for where in experts if name.startswith(f"{where}.")), None)
        source = _source(members, linears, known, text, block)
        groups.append(Group(members, source, _fused(members, path, routed), routed, seen.stopped))
    order = {name: number for number, name in enumerate(seen.order.get(path, ()))}
    groups.sort(key=lambda group: order.get(group[0].module, len(order)))
    norms = tuple(name for name, module in block.named_children() if is_norm(module, text.hidden_size))
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
    heads, keys, size = heads_of(text)
    return Rows(source, size, heads // keys)


def _fused(members: Sequence[Linear], path: str, routed: str | None) -> str | None:
    """What runtimes make one matrix of: a layer's experts; q, k and v; gate and up."""
    if routed is not None:
        return f"{path}.{routed}"
    kinds = tuple(linear.kind.removeprefix("shared_") for linear in members)
    name = _FUSED.get(kinds)
    return f"{path}.{members[0].module.rpartition('.')[0]}.{name}" if name else None


def is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and (weight is None or tuple(weight.shape) == (width,))


def _is_router(name: str) -> bool:
    """By a linear module's path within its block; some routers are modules of several."""
    return any(part in _ROUTERS for part in name.split("."))


def heads_of(text: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, key heads, size of one."""
    heads = value_of(text, "num_attention_heads") or 1
    keys = value_of(text, "num_key_value_heads") or heads
    return heads, keys, value_of(text, "head_dim") or max(1, text.hidden_size // heads)
