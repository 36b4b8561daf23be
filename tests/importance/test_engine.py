"""The span-local engine against full backpropagation, finite differences and plain activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import dispatch_model
from reference import (
    TINY,
    attributed,
    full_backpropagation,
    layout_of,
    outputs_of,
    relative_error,
    tiny_model,
)

from mixprec.importance.options import AttributionOptions
from mixprec.importance.windows import Window, plan_work
from mixprec.models.load import LoadedModel
from mixprec.models.model import Model
from mixprec.traces import spans, store

#: Overlapping, nested, adjacent, at the start, one token, to the very end.
WINDOWS = [
    Window(0, 0, 6),
    Window(1, 4, 9),
    Window(0, 4, 9),
    Window(2, 9, 10),
    Window(3, 10, 12),
    Window(1, 20, 40),
    Window(2, 5, 33),
]


def check_windows(architecture: str, dtype: torch.dtype, tolerance: float, **sizes: int) -> None:
    model = tiny_model(architecture, dtype)
    layout = layout_of(model)
    tokens = torch.randint(3, 61, (40,), generator=torch.Generator().manual_seed(5))
    result = attributed(model, layout, tokens, torch.ones(1, 40), WINDOWS, **sizes)
    for window, gradient in zip(WINDOWS, result.gradients, strict=True):
        reference = full_backpropagation(model, layout, tokens, window)
        if window.compute == 0:
            assert not reference.any()
            assert not gradient.any()
        else:
            assert relative_error(gradient, reference) < tolerance


@pytest.mark.parametrize("architecture", TINY)
def test_gradients_are_those_of_full_backpropagation(architecture: str) -> None:
    # Gemma 2's reference has a float32 softmax (eager attention).
    check_windows(
        architecture, torch.float64, 1e-5 if architecture == "gemma2" else 1e-9, chunk_tokens=16, batch_tokens=12
    )


@pytest.mark.parametrize(("chunk_tokens", "batch_tokens"), [(1, 1), (7, 64), (64, 3)])
def test_neither_chunks_nor_batches_change_the_gradients(chunk_tokens: int, batch_tokens: int) -> None:
    check_windows("llama", torch.float64, 1e-9, chunk_tokens=chunk_tokens, batch_tokens=batch_tokens)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_devices_without_the_fused_kernel_get_the_same_gradients(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixprec.importance.attention._has_flash", lambda query: False)
    check_windows(architecture, torch.float64, 1e-5 if architecture == "gemma2" else 1e-9, chunk_tokens=16)


def test_float32_is_within_the_promised_error() -> None:
    check_windows("qwen3", torch.float32, 1e-4)


def test_bfloat16_accumulates_in_float32() -> None:
    model = tiny_model("llama", torch.bfloat16)
    layout = layout_of(model)
    tokens = torch.randint(3, 61, (40,), generator=torch.Generator().manual_seed(5))
    result = attributed(model, layout, tokens, torch.ones(1, 40), WINDOWS)
    assert result.gradients.dtype == result.row_sums.dtype == torch.float32
    assert relative_error(result.gradients[1], full_backpropagation(model, layout, tokens, WINDOWS[1]).float()) < 0.1


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj", "model.layers.2.mlp.up_proj"])
def test_gradients_are_slopes_of_the_loss(name: str) -> None:
    """Pushing a module's output along a direction, at the window's positions, moves the loss as the gradient says."""
    model = tiny_model("llama")
    layout = layout_of(model)
    tokens = torch.randint(3, 61, (30,), generator=torch.Generator().manual_seed(6))
    window = Window(0, 8, 19)
    gradient = attributed(model, layout, tokens, torch.ones(1, 30), [window]).gradients[0, layout.slices[name]]
    direction = torch.randn(len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def loss(step: float) -> torch.Tensor:
        def push(_m: object, _i: object, output: torch.Tensor) -> torch.Tensor:
            pushed = output.clone()
            pushed[0, window.start : window.end] += step * direction
            return pushed

        handle = layout.modules[name].register_forward_hook(push)
        scores = model(tokens[None, : window.end]).logits[0]
        handle.remove()
        return F.cross_entropy(scores[window.start - 1 : window.end - 1], tokens[window.start : window.end])

    with torch.no_grad():
        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    predicted = gradient @ direction * (window.end - window.start)  # the engine gives the mean over positions
    assert torch.allclose(predicted, slope, rtol=1e-6)


def test_row_sums_are_sums_of_plain_activations() -> None:
    model = tiny_model("qwen2")
    layout = layout_of(model)
    tokens = torch.randint(3, 61, (33,), generator=torch.Generator().manual_seed(8))
    rows = torch.rand(3, 33, generator=torch.Generator().manual_seed(9))
    result = attributed(model, layout, tokens, rows, [], chunk_tokens=10)
    outputs = outputs_of(model, layout, tokens)
    expected = torch.cat([rows.double() @ outputs[name] for name in layout.modules], dim=1)
    assert relative_error(result.row_sums, expected) < 1e-12


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    tokens = torch.arange(3, 23)
    with torch.no_grad():
        scores = model(tokens[None]).logits
    attributed(model, layout_of(model), tokens, torch.ones(1, 20), [Window(0, 3, 9)])
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(tokens[None]).logits, scores)


@pytest.mark.slow
def test_real_spans_on_the_embedded_model(smollm2: LoadedModel, shared_data: Path) -> None:
    """1e-4 of full backpropagation in float32, per module, on spans of the paper's traces."""
    traces = store.load(str(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"))
    trace = next(
        t for t in traces if t.dataset == "FOLIO" and len(t.text) < 3500 and spans.char_spans(t, "paper").spans
    )
    encoded = smollm2.tokenizer(trace.text, return_offsets_mapping=True)
    tokens = torch.tensor(encoded["input_ids"])
    found, _ = spans.token_spans(spans.char_spans(trace, "paper").spans, encoded["offset_mapping"], len(tokens))
    windows = plan_work(found, store.BEHAVIOURS, len(tokens), AttributionOptions.of("paper")).windows
    layout = layout_of(smollm2.model)
    gradients = attributed(smollm2.model, layout, tokens, torch.ones(1, len(tokens)), windows).gradients
    for number in {0, len(windows) // 2, len(windows) - 1}:
        reference = full_backpropagation(smollm2.model, layout, tokens, windows[number])
        for where in layout.slices.values():
            assert relative_error(gradients[number, where], reference[where]) < 1e-4


def test_layers_behind_accelerate_hooks_get_the_same_gradients(tiny_checkpoint: Path) -> None:
    """``device: auto``; one device is all there is here, but the hooks that move tensors between devices are real."""
    plain, spread = Model(tiny_checkpoint).load(), Model(tiny_checkpoint, device="auto").load()
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{number}": "cpu" for number in range(2)}
    dispatch_model(spread.model, places, force_hooks=True)
    assert all(hasattr(layer, "_hf_hook") for layer in spread.model.model.layers)
    tokens = torch.arange(3, 43)
    one, other = (
        attributed(loaded.model, layout_of(loaded.model), tokens, torch.ones(1, 40), WINDOWS)
        for loaded in (plain, spread)
    )
    assert one.gradients.any()
    assert torch.equal(one.gradients, other.gradients)
    assert torch.equal(one.row_sums, other.row_sums)
