"""The calculator against what a model really holds and computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import architectures
import pytest
import torch
from reference import attributed, layout_of
from tiny import build
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mixprec.core.errors import UserError
from mixprec.importance import cost, engine, paths, probing
from mixprec.importance.attention import KeyValueCache, trace_attention
from mixprec.importance.cost import PAPER_CORPUS, Corpus, Shape
from mixprec.importance.engine import Job
from mixprec.importance.windows import Window, pack
from mixprec.models import experts
from mixprec.models.config import load_config
from mixprec.models.load import LoadedModel
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.report.costs import about

SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 16}
LENGTH = 96
WINDOWS = [Window(0, 10, 31), Window(1, 40, 84)]
CORPUS = Corpus(1, LENGTH, LENGTH**2, LENGTH, 2, 63, 20 * 10 + 43 * 40, 31 + 84, 31**2 + 84**2)


def tiny(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return build(**SIZES, **options).model.to(dtype).requires_grad_(False)


@contextmanager
def kept_by_autograd(model: Any) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps inside the block, parameters left out, by address."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack_hook(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        yield kept


class Counter(TorchDispatchMode):
    """Adds up torch's own formulas for matrix products. (FlopCounterMode's hooks forbid some calls of autograd.)"""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops(call: Callable[[], Any]) -> int:
    with Counter() as counter:
        call()
    return counter.total


def test_weights_and_keys_and_values_are_exact(smollm2: LoadedModel) -> None:
    shape = Shape.of(load_config(BUNDLED))
    assert shape.parameters == sum(parameter.numel() for parameter in smollm2.model.parameters())
    assert cost.our_memory(shape, 30, 4).weights == sum(p.nbytes for p in smollm2.model.parameters())
    cache, tokens = KeyValueCache(30), torch.arange(30)
    with trace_attention(smollm2.model):
        job = Job(tokens, torch.ones(1, 30), [])
        engine._prefill(smollm2.model, decoder_of(smollm2.model.config), layout_of(smollm2.model), job, cache, 16)
    assert cost.our_memory(shape, 30, 4).keys_values == cache.nbytes
    assert shape.outputs == layout_of(smollm2.model).size


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}])
def test_operations_of_a_forward_pass(options: dict[str, Any]) -> None:
    model = tiny(**options)
    model.set_attn_implementation("eager")  # whose matrix products the counter sees
    shape = Shape.of(model.config)
    counted = flops(lambda: model(torch.arange(LENGTH)[None], use_cache=False))
    # Eager attention computes every pair, the upper triangle too.
    expected = cost.forward_flops(shape, CORPUS) + shape.pair * (LENGTH**2 - LENGTH) // 2
    assert counted == expected


def test_operations_of_attribution_without_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter does not know the fused kernel: what it sees of attention is the backward pass over the prefix."""
    model = tiny()
    shape = Shape.of(model.config)
    pair = shape.pair
    monkeypatch.setattr(cost.Shape, "pair", 0)
    monkeypatch.setattr(engine, "path_of", lambda opened: paths.Chosen("packed"))  # probing costs something itself
    tokens, rows = torch.arange(LENGTH), torch.zeros(0, LENGTH)
    counted = flops(lambda: attributed(model, layout_of(model), tokens, rows, WINDOWS))
    batches = list(pack(WINDOWS, engine.BATCH_TOKENS))
    sums = sum(2 * len(batch.number) * len(batch.positions) * shape.outputs for batch in batches)
    prefix = sum(len(batch.positions) * int(batch.starts.min()) for batch in batches)
    assert counted - sums - pair * prefix * 3 // 2 == cost.our_flops(shape, CORPUS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_autograd_keeps_of_spans(dtype: torch.dtype) -> None:
    model = tiny(dtype)
    shape, layout, tokens = Shape.of(model.config), layout_of(model), torch.arange(LENGTH)
    cache, job = KeyValueCache(LENGTH), Job(tokens, torch.ones(1, LENGTH), WINDOWS)
    with trace_attention(model):
        engine._prefill(model, decoder_of(model.config), layout, job, cache, LENGTH)
        (batch,) = pack(WINDOWS, CORPUS.positions)
        with kept_by_autograd(model) as kept:
            engine._batch_gradients(model, decoder_of(model.config), layout, tokens, batch, cache)
    assert sum(kept.values()) == pytest.approx(shape.kept(dtype.itemsize, parameters=False) * 63, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_released_code_keeps(dtype: torch.dtype) -> None:
    model = tiny(dtype).requires_grad_(True)
    shape, tokens = Shape.of(model.config), torch.arange(LENGTH)
    outputs: list[Tensor] = []
    handles = [
        m.register_forward_hook(lambda _m, _i, output: outputs.append(output))
        for m in layout_of(model).modules.values()
    ]
    with kept_by_autograd(model) as kept:
        hidden = model.model(tokens[None], use_cache=False).last_hidden_state
    for handle in handles:
        handle.remove()
    gradients = sum(output.nbytes for output in outputs)
    kept |= {output.untyped_storage().data_ptr(): output.untyped_storage().nbytes() for output in outputs}
    expected = cost.released_memory(shape, LENGTH, dtype.itemsize).activations
    assert hidden.shape[1] == LENGTH
    assert sum(kept.values()) + gradients == pytest.approx(expected, rel=0.08)


class Products(Counter):
    """Without attention, whose operations the calculator counts as those of causal queries and keys."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("path", ["cached", "stepwise", "whole"])
def test_operations_where_spans_are_not_packed(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    shape = Shape.of(model.config)
    monkeypatch.setattr(cost.Shape, "pair", 0)
    monkeypatch.setattr(engine, "path_of", lambda opened: paths.Chosen(path, "asked for"))
    with Products() as counter:
        attributed(model, layout_of(model), torch.arange(LENGTH), torch.zeros(0, LENGTH), WINDOWS)
    # The cache ends with the last span's prefix; prefixes alone are what a stepwise span runs anew.
    unread = {"cached": LENGTH - 40, "stepwise": CORPUS.positions, "whole": 0}[path]
    expected = cost.generic_flops(shape, CORPUS, path) - 2 * shape.linear * unread
    sums = sum(2 * window.compute * shape.outputs for window in WINDOWS)
    assert counter.total == pytest.approx(expected + sums, rel=0.02)


def test_experts_count_as_often_as_tokens_meet_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = architectures.model_of("mixtral")
    with experts.unstacked(model):
        shape = Shape.of(model.config)
        monkeypatch.setattr(cost.Shape, "pair", 0)
        with Products() as counter, torch.no_grad():
            model.model(torch.arange(LENGTH)[None], use_cache=False)
    routers = 2 * 2 * 4 * model.config.hidden_size * LENGTH
    assert counter.total == shape.forward(LENGTH, LENGTH**2) + routers
    assert shape.active < shape.linear


@pytest.mark.parametrize("architecture", architectures.ALL)
def test_the_path_is_told_without_weights(architecture: str) -> None:
    """What paths.py sees of values is said beforehand: packed, or not and why."""
    why = probing.why_not_by_shapes(architectures.config_of(architecture))
    assert (why is None) == (architectures.PATHS.get(architecture, "packed") == "packed"), why


def test_what_is_not_packed_costs_more_and_says_why() -> None:
    config = architectures.config_of("gpt_oss", num_hidden_layers=2)
    found = cost.cost(config, "float32", 200)
    assert found.path == "cached"
    assert "s_aux" in found.why
    packed = cost.our_memory(Shape.of(config), 200, 4)
    assert found.ours.keys_values == 2 * packed.keys_values
    assert found.our_flops > cost.our_flops(Shape.of(config), PAPER_CORPUS)
    assert "can't be packed (its attention has s_aux)" in about(found)


def test_ours_is_close_to_a_forward_pass_and_the_released_code_far_from_it() -> None:
    found = cost.cost(load_config("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"), "bfloat16", 8000)
    assert 1 < found.our_flops / found.forward < 1.2
    assert 25 < found.released_flops / found.our_flops < 40
    assert found.ours.weights == 2 * 8_030_261_248
    assert found.ours.total < 24e9 < found.released.total
    assert found.ours.keys_values == 8000 * 131_072


def test_the_corpus_is_consistent() -> None:
    assert PAPER_CORPUS.longest**2 < PAPER_CORPUS.squares < PAPER_CORPUS.longest * PAPER_CORPUS.tokens
    assert PAPER_CORPUS.ends / PAPER_CORPUS.tokens == pytest.approx(13.5, abs=0.1)


def test_unknown_types_are_refused() -> None:
    with pytest.raises(UserError, match="dtype"):
        cost.cost(tiny().config, "int3", 100)
