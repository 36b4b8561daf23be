"""Whether packed spans give what a model computes: looked at on a few tokens, block by block.

Nothing is known of names of architectures. A model's masks are read off the functions that transformers makes them of,
far behind the probe's own length; then every block (of a streamed model one of each kind) computes the probe's tokens
with its own attention, and with ours in chunks and in packed spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AttentionInterface, DynamicCache, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface

from mixprec.core.upstream import first_line
from mixprec.importance.attention import (
    KeyValueCache,
    NotPacked,
    PackedSpans,
    Prefill,
    not_known,
    trace_attention,
    using,
)
from mixprec.importance.windows import Window, pack
from mixprec.models.discover.building import empty
from mixprec.models.sizes import value_of
from mixprec.models.weights import blocks_of, body_of, map_in, through
from mixprec.walk.blocks import Blocks, Live, block_inputs
from mixprec.walk.recording import BlockInputs
from mixprec.walk.whole import kept_together

#: How far two ways to compute the same may differ, of the largest value: rounding is far below, a mistake far above.
ALIKE: Final = 2e-5
#: Masks are looked at as far as this, where the model's context reaches so far.
_FAR: Final = 1 << 16
_LOOKING: Final = "mixprec_looking"
#: What packed attention is told of scores, by names.
_OURS: Final = frozenset({"scaling", "dropout", "softcap", "trace_state"})
_TOKENS: Final = 20
_CHUNK: Final = 9
_WINDOWS: Final = (Window(0, 4, 12), Window(1, 10, 20), Window(2, 14, 17))


def probe_tokens(model: Any, count: int = _TOKENS) -> Tensor:
    """(count,) ids, the same ones each time."""
    words = map_in(model).sizes.vocabulary
    return torch.randint(0, words, (count,), generator=torch.Generator().manual_seed(1))


def unlike(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    ours, theirs = ours.detach(), theirs.detach()
    scale = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
    return float(((ours.to(theirs.device) - theirs).abs().max() / scale).nan_to_num(torch.inf))


def why_not_packed(opened: Blocks | Live) -> str | None:
    """Why packed spans don't give what the model computes; None where they do."""
    model = opened.model
    try:
        _check_masks(model.config)
        with torch.no_grad():
            _check_blocks(opened)
    except NotPacked as reason:
        return str(reason)
    except Exception as problem:  # models that were made for other ways to be called break in many
        return first_line(problem)
    return None


def why_not_by_shapes(config: PretrainedConfig) -> str | None:
    """As ``why_not_packed``, as far as a configuration tells, without weights: by a pass of shapes."""
    try:
        shapes, called = _check_masks(config)
    except NotPacked as reason:
        return str(reason)
    except Exception as problem:  # as above
        return first_line(problem)
    for number, block in enumerate(blocks_of(shapes), 1):
        parts = list(block.modules())
        if not called & set(parts) or any(isinstance(each, nn.Conv1d) for each in parts):
            return f"block {number} mixes tokens in another way than by softmax attention"
    return None


def _check_masks(config: PretrainedConfig) -> tuple[Any, set[nn.Module]]:
    """The model of ``config`` without weights, and the modules of it that call an attention.

    Raises NotPacked where a mask is neither causal nor the window that its attention is told of, and for arguments of
    the attention that aren't known.
    """
    with torch.device("meta"):
        shapes = empty(config)
    called: set[nn.Module] = set()
    seen: dict[int, tuple[Tensor, int | None]] = {}

    def mask(q_length: int, kv_length: int, mask_function: Any, **_: Any) -> Tensor:
        made = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool, device="meta")
        seen[id(made)] = (made, _reach(mask_function, _far(config)))
        return made

    def attention(
        module: nn.Module,
        query: Tensor,
        _key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        called.add(module)
        if "trace_state" not in others:
            raise NotPacked("the model doesn't hand on what it is called with")
        if strange := [name for name in not_known(others) if name not in _OURS]:
            raise NotPacked(f"its attention has {', '.join(strange)}")
        if id(attention_mask) not in seen:
            raise NotPacked("its masks aren't made by transformers' functions")
        far = _far(config)
        told = None if sliding_window is None or sliding_window > far else sliding_window
        if seen[id(attention_mask)][1] != told:
            raise NotPacked("its attention sees other tokens than a causal mask or its sliding window")
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(_LOOKING, attention)
    AttentionMaskInterface.register(_LOOKING, mask)
    with using(shapes, _LOOKING), torch.no_grad():
        # With a cache, since without one transformers looks at values of positions.
        cache = DynamicCache(config=config.get_text_config(decoder=True))
        tokens = torch.zeros(1, 3, dtype=torch.long, device="meta")
        body_of(shapes)(input_ids=tokens, past_key_values=cache, trace_state=_LOOKING)
    return shapes, called


def _far(config: PretrainedConfig) -> int:
    text = config.get_text_config(decoder=True)
    return min(_FAR, int(value_of(text, "max_position_embeddings") or _FAR) - 1)


def _reach(sees: Any, far: int) -> int | None:
    """Keys that a query sees, itself included; None: all up to itself. Raises NotPacked where it isn't that simple."""
    with torch.device("cpu"):
        keys = torch.arange(far + 1)
        zero = torch.tensor(0)
        counts = []
        for query in (far, far * 2 // 3 + 1):
            seen = sees(zero, zero, torch.tensor(query), keys).expand(len(keys))
            count = int(seen.sum())
            if not seen[query + 1 - count : query + 1].all():
                raise NotPacked("its queries see keys that lie apart")
            counts.append(None if count == query + 1 else count)
    if counts[0] != counts[1] and (counts[1] is not None or counts[0] is None or counts[0] <= far * 2 // 3 + 1):
        raise NotPacked("its queries see more or fewer keys from one to the next")
    return counts[0]


def _check_blocks(opened: Blocks | Live) -> None:
    """Raises NotPacked where a block computes something else with this attention in the place of its own."""
    model, tokens = opened.model, probe_tokens(opened.model)
    together = kept_together(model)
    if together is not None:
        raise NotPacked(f"its blocks can't be taken one by one: {together}")
    device = model.get_input_embeddings().weight.device
    (batch,) = pack(_WINDOWS, 1000)
    chunks = (torch.arange(_CHUNK), torch.arange(_CHUNK, _TOKENS))
    theirs = block_inputs(model, tokens[None])

    def states(cache: KeyValueCache) -> Iterator[tuple[Tensor, Prefill | PackedSpans]]:
        for where in chunks:
            yield where, Prefill(cache, int(where[0]), int(where[-1]) + 1, device)
        yield batch.positions, PackedSpans(cache, batch, device)

    with trace_attention(model):
        entering = {
            number: block_inputs(model, tokens[None, where], position_ids=state.positions[None], trace_state=state)
            for number, (where, state) in enumerate(states(KeyValueCache(_TOKENS)))
        }
    for number, (where, _) in enumerate(states(KeyValueCache(_TOKENS))):
        if unlike(entering[number].hidden, theirs.hidden[:, where]) > ALIKE:
            raise NotPacked("what enters its blocks depends on other tokens")
    for index in _kinds(opened):
        with opened.block(index) as block:
            expected = _apart(block, theirs, index)
            with trace_attention(model):
                for number, (where, state) in enumerate(states(KeyValueCache(_TOKENS))):
                    found = _apart(block, entering[number], index, trace_state=state)
                    if unlike(found, expected[:, where]) > ALIKE:
                        raise NotPacked(f"block {index + 1} mixes tokens in another way than by softmax attention")


def _kinds(opened: Blocks | Live) -> list[int]:
    """Blocks to look at: all; of a model on disk one of each kind."""
    blocks = blocks_of(opened.model)
    if isinstance(opened, Live):
        return list(range(len(blocks)))
    told = getattr(opened.model.config.get_text_config(decoder=True), "layer_types", None) or [None] * len(blocks)
    kinds: dict[Any, int] = {}
    for index, block in enumerate(blocks):
        kinds.setdefault((told[index], tuple(type(module) for module in block.modules())), index)
    return list(kinds.values())


def _apart(block: nn.Module, entering: BlockInputs, index: int, **changes: Any) -> Tensor:
    """What a block makes of the model's input beside its hidden part, in float32 at least.

    Relative to hidden states a block may do little, so they are taken off.
    """
    wide = {name: _wider(tensor) for name, tensor in (*block.named_parameters(), *block.named_buffers())}
    context = _wider({**entering.contexts[index], **changes})
    hidden = _wider(entering.hidden).to(next(iter(wide.values())).device)
    found = functional_call(
        _Through(block), {f"block.{name}": tensor for name, tensor in wide.items()}, (hidden, context)
    )
    return found.to(hidden.device) - hidden  # type: ignore[no-any-return]


class _Through(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, context: Mapping[str, Any]) -> Tensor:
        return through(self.block, hidden, context)


def _wider(value: Any) -> Any:
    """Half precision as float32, also within what holds tensors."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() and value.element_size() < 4 else value
    if isinstance(value, dict):
        return {key: _wider(each) for key, each in value.items()}
    return type(value)(map(_wider, value)) if type(value) in (tuple, list) else value
