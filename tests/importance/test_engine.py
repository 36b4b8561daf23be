"""The span-local engine against full backpropagation, finite differences and plain activations."""

from __future__ import annotations

import pytest
import torch
from reference import TINY, full_backpropagation, relative_error, tiny_model

from mixprec import modules
from mixprec.importance.engine import Layout, run_trace
from mixprec.importance.windows import Window

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


def layout_of(model: torch.nn.Module) -> Layout:
    return Layout.of_linears(
        {modules.address(layer, kind): m for (layer, kind), m in modules.linear_layers(model).items()}
    )


@pytest.mark.parametrize("architecture", TINY)
def test_gradients_are_those_of_full_backpropagation(architecture: str) -> None:
    model = tiny_model(architecture)
    layout = layout_of(model)
    tokens = torch.randint(3, 61, (40,))
    result = run_trace(model, layout, tokens, torch.ones(1, 40), WINDOWS, chunk_tokens=16, batch_tokens=12)
    for window, gradient in zip(WINDOWS, result.gradients, strict=True):
        reference = full_backpropagation(model, layout, tokens, window)
        if window.compute == 0:
            assert not reference.any()
            assert not gradient.any()
        else:
            # Gemma 2's reference has a float32 softmax (eager attention).
            assert relative_error(gradient, reference) < (1e-5 if architecture == "gemma2" else 1e-9)
