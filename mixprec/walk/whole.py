"""Whether blocks taken one by one give what their model computes: tried once for each structure, without its weights.

The tables of ``models/arch/`` describe families whose blocks do. Of others, a model of the same structure is built
whose parameters are views of a few numbers, and whose linear modules pick among their inputs: it takes neither memory
nor time. A few tokens go through its first blocks, until one of each kind was met: as the model takes them, and one by
one.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line, quiet
from mixprec.models.arch import FAMILIES
from mixprec.models.discover.building import empty, structure_of, without_weights
from mixprec.models.weights import blocks_of, body_of, map_in, norm_of, through
from mixprec.walk.recording import BlockInputs, bound, recorded

#: Two samples, which go through each block one after the other, as those of calibration do.
_TOKENS: Final = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
#: How far final hidden states may differ, of their largest value: the same is computed twice.
_ALIKE: Final = 1e-5

#: Structure -> why its blocks can't be taken one by one, in words; None where they can.
_reasons: dict[str, str | None] = {}
_walked: weakref.WeakSet[Any] = weakref.WeakSet()


def check_walked(model: Any) -> None:
    """Raises UserError for a model whose blocks, taken one by one, don't give what it computes."""
    reason = kept_together(model)
    if reason is not None:
        raise UserError(
            f"model.id: {type(model).__name__} ({model.config.model_type}): its blocks, taken one by one, don't give "
            f"what the whole model computes: {reason}; compress it by rtn, which needs no calibration"
        )


def kept_together(model: Any) -> str | None:
    """``why_not_walked`` of a model, whose structure is tried once; of families with tables it is known."""
    if model in _walked or model.config.model_type in FAMILIES:
        return None
    key = structure_of(model.config)
    if key not in _reasons:
        _reasons[key] = why_not_walked(model.config)
    if _reasons[key] is None:
        _walked.add(model)
    return _reasons[key]


def why_not_walked(config: PretrainedConfig) -> str | None:
    """Why blocks of the model of ``config`` can't be taken one by one; None where they give what it computes."""
    try:
        model = _stand_in(config)
        blocks, where = blocks_of(model), map_in(model).blocks_path
        first = nn.ModuleList(list(blocks)[: _until_all_kinds(blocks)])
        model.set_submodule(where, first)
        try:
            return _difference(model)
        except Exception:
            if len(first) == len(blocks):
                raise
        model.set_submodule(where, blocks)  # some look at how many there are
        return _difference(model)
    except Exception as problem:  # models that were made for other ways to be called break in many
        return first_line(problem)


def _stand_in(config: PretrainedConfig) -> Any:
    """A model of a structure, in float32 on the CPU, whose parameters share a few numbers."""
    config = copy.deepcopy(config)
    config._attn_implementation = None  # that of attribution is told what is known of its own passes alone
    with quiet(), without_weights():
        model = empty(config, torch.float32)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(_numbers(parameter), requires_grad=False)
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            module.forward = functools.partial(_picked, module)  # type: ignore[method-assign]
    return model


def _picked(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """In the place of a matrix product: each output is a multiple of one input."""
    generator = torch.Generator().manual_seed(linear.in_features)
    columns = torch.randint(linear.in_features, (linear.out_features,), generator=generator)
    found = inputs[..., columns] * torch.randn(linear.out_features, generator=generator)
    return found if linear.bias is None else found + linear.bias


def _numbers(like: Tensor) -> Tensor:
    """Values of a parameter's shape: about 1 of vectors, such as norms' weights; of matrices rows of one sequence, each
    one number further than the one before, so that outputs are about as large as inputs."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    strides = [1] * like.ndim
    random = torch.randn(sum(like.shape) + 1, generator=torch.Generator().manual_seed(like.numel()))
    values = random / max(1, like.shape[-1]) ** 0.5 if like.ndim > 1 else 1 + random / 10
    return values.as_strided(like.shape, strides)


def _until_all_kinds(blocks: nn.ModuleList) -> int:
    """How many of the first blocks hold one of each kind, and one more, which gets what the last of them leaves."""
    kinds = [
        tuple((type(module), *_flags(module)) for module in block.modules() if not isinstance(module, nn.Linear))
        for block in blocks
    ]
    return max(kinds.index(kind) for kind in set(kinds)) + 2


def _flags(module: nn.Module) -> tuple[tuple[str, object], ...]:
    return tuple((name, value) for name, value in vars(module).items() if isinstance(value, bool | str | None))


@torch.no_grad()
def _difference(model: Any) -> str | None:
    """What differs when a model's blocks are taken one by one; None where nothing does."""
    blocks, norm = blocks_of(model), norm_of(model)
    entering = [recorded(model, tokens[None]) for tokens in _TOKENS]
    before = [_held(each.contexts) for each in entering]
    states = [each.hidden for each in entering]
    for index, block in enumerate(blocks):
        states = [through(block, hidden, given.contexts[index]) for hidden, given in zip(states, entering, strict=True)]
    for held, given in zip(before, entering, strict=True):
        for (name, was), (_, now) in zip(held, _held(given.contexts), strict=True):
            if len(was) != len(now) or any(one is not other for one, other in zip(was, now, strict=True)):
                return f"they hand {name} to one another"
    for tokens, hidden, given in zip(_TOKENS, states, entering, strict=True):
        with _calls(blocks) as calls:
            expected = body_of(model)(input_ids=tokens[None], use_cache=False).last_hidden_state
        if not _alike(norm(hidden), expected):
            return _where(calls, given)
    return None


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= _ALIKE * theirs.abs().max())


def _held(contexts: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Arguments that blocks may write into, and what they hold."""
    return [
        (name, list(value.values() if isinstance(value, Mapping) else value))
        for context in contexts
        for name, value in context.items()
        if isinstance(value, Mapping | list)
    ]


class _Call:
    """What a block is given, hidden states and others, and what it returns first."""

    hidden: Tensor
    others: Mapping[str, Any]
    output: Tensor


@contextmanager
def _calls(blocks: nn.ModuleList) -> Iterator[list[_Call]]:
    """Note what the model hands its blocks inside."""
    calls, hooks = [_Call() for _ in blocks], []
    for call, block in zip(calls, blocks, strict=True):

        def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], call: _Call = call) -> None:
            call.hidden, call.others = bound(module, given, named)

        def leave(_module: nn.Module, _given: Any, output: Any, call: _Call = call) -> None:
            call.output = output[0] if isinstance(output, tuple) else output

        hooks += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _where(calls: Sequence[_Call], given: BlockInputs) -> str:
    """In words, the first thing that blocks of a whole pass are given and those taken one by one aren't."""
    for index, (call, context) in enumerate(zip(calls, given.contexts, strict=True)):
        entering = calls[index - 1].output if index else given.hidden
        if call.hidden.shape != entering.shape or not call.hidden.equal(entering):
            return f"what enters block {index + 1} is not what leaves the one before it"
        for name, value in call.others.items():
            if not _same(value, context.get(name)):
                return f"block {index + 1} is given {name}, which the blocks before it make"
    return "they are not followed by the norm alone, or compute something else in another order"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.equal(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other)
