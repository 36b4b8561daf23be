"""What blocks are given besides hidden states is that of their micro-batch, wherever it lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mixprec.walk import blocks
from mixprec.walk.contexts import Contexts
from mixprec.walk.recording import BlockInputs

TOKENS = torch.arange(12).view(4, 3)
BATCHES = [slice(0, 2), slice(2, 4)]


@pytest.mark.parametrize("wrapped", [lambda x: x, lambda x: (x, None), lambda x: {"a": x}, lambda x: {"a": [x]}])
@pytest.mark.parametrize("depends", [True, False])
def test_arguments_are_made_for_each_micro_batch_where_they_depend_on_it(
    wrapped: Any, depends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.Tensor] = []

    def inputs(_model: object, tokens: torch.Tensor) -> BlockInputs:
        made.append(tokens)
        value = tokens.float() if depends else torch.ones(1, 3)
        return BlockInputs(tokens.float(), [{"mask": wrapped(value)}])

    monkeypatch.setattr(blocks, "block_inputs", inputs)
    contexts = Contexts(object(), TOKENS, BATCHES)
    expected = [wrapped(TOKENS[where].float() if depends else torch.ones(1, 3)) for where in BATCHES]
    for number, value in enumerate(expected):
        assert str(contexts.of(0, number, 2)["mask"]) == str(value)
