from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mixprec.calibration.data import Calibration
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.models.sizes import sizes_of
from mixprec.models.weights import module_of
from mixprec.numerics.statistics import InputSums
from mixprec.walk.samples import FULL, OWN, Gathering, Samples, Seen, batch_size
from mixprec.walk.states import States
from mixprec.walk.walk import walk


@settings(deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 3))
def test_sums_do_not_depend_on_micro_batches(piece: int, sizes: list[int], weighted: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, full = (torch.randn(sum(sizes), 4, 3, generator=generator) for _ in range(2))
    weights = torch.rand(sum(sizes), 4, weighted, generator=generator) if weighted else None
    whole = Seen(inputs, weights, full)
    found = Gathering(3, piece, count=weighted or 1, drift=True)
    start = 0
    for size in sizes:
        found.add(whole.part(slice(start, start + size)))
        start += size
    for number, result in enumerate(found.results()):
        expected = InputSums(3, drift=True)
        for start in range(0, len(inputs), piece):
            rows = slice(start, start + piece)
            expected.add(inputs[rows], None if weights is None else weights[rows, :, number], full[rows])
        for one, other in zip(result, expected.result(), strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_all_samples_go_at_once_where_they_fit_else_two_micro_batches_do() -> None:
    sizes = sizes_of({"model_type": "llama", "hidden_size": 10, "intermediate_size": 30, "num_attention_heads": 1})
    tokens = torch.zeros(8, 5, dtype=torch.long)
    each = 5 * 4 * (10 + 30) * 2
    assert batch_size(sizes, tokens, torch.bfloat16, 8 * each) == 8
    assert batch_size(sizes, tokens, torch.bfloat16, 8 * each - 1) == 3
    assert batch_size(sizes, tokens, torch.float32, 8 * each) == 2
    assert batch_size(sizes, tokens, torch.bfloat16, 1) == 1


@pytest.mark.parametrize("limit", [0, 10**9])
def test_samples_arrive_where_the_whole_model_takes_them(tiny_checkpoint: Path, tmp_path: Path, limit: int) -> None:
    tokens = torch.randint(2, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    loaded = Model(tiny_checkpoint).load()
    with torch.no_grad():
        expected = loaded.model.model(input_ids=tokens).last_hidden_state
    opened = Model(tiny_checkpoint).open_blocks(("embedding", "norm"))
    samples = Samples(opened.model, Calibration(tokens, None, {}, ""), States(limit, tmp_path / "states"), 2)
    seen: list[torch.Tensor] = []
    group = decoder_of(load_config(str(tiny_checkpoint))).groups[1].linears

    @torch.no_grad()
    def visit(index: int, block: nn.Module) -> None:
        if index == 0:
            modules = [module_of(block, linear) for linear in group]
            seen.extend(samples.arguments(number, index, block, modules)[0] for number in range(3))
        samples.run(index, block)

    caught: list[torch.Tensor] = []
    loaded.linears[group[0].address].register_forward_pre_hook(lambda _module, given: caught.append(given[0]))
    with torch.no_grad():
        loaded.model.model(input_ids=tokens)
    walk(opened, range(opened.layers), visit)
    found = torch.cat([samples.states[OWN, number] for number in range(3)])
    torch.testing.assert_close(opened.model.model.norm(found), expected)
    torch.testing.assert_close(torch.cat(seen), caught[0])


def test_samples_enter_again_as_the_embedding_is_now(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokens = torch.randint(2, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    model = Model(tiny_checkpoint).open_blocks(("embedding", "norm")).model
    calibration, states = Calibration(tokens, None, {}, ""), States(10**9, tmp_path / "states")
    samples = Samples(model, calibration, states, 2, streams=(OWN, FULL))
    weight = model.get_input_embeddings().weight
    before = weight.clone()
    weight.data.mul_(0.5)
    samples.enter(model)
    for number, where in enumerate(samples.batches):
        assert torch.equal(samples.states[OWN, number], weight[tokens[where]])
        assert torch.equal(samples.states[FULL, number], before[tokens[where]])  # the uncompressed model's
