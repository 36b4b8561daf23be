"""What discovery says where it can't look, and what it refuses."""

from __future__ import annotations

import architectures
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from mixprec.checkpoint.check import Target, require
from mixprec.compress.folding import freedom
from mixprec.core.errors import UserError
from mixprec.models.discover.building import empty, without_weights
from mixprec.models.discover.maps import map_of
from mixprec.models.labels import select
from mixprec.plan.rules import PlanSpec, build_plan


def test_a_pass_of_shapes_that_stops_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("mixprec.models.discover.maps.console.print", lambda *lines, **_: said.extend(map(str, lines)))
    monkeypatch.setattr("mixprec.models.discover.maps._found", {})
    config = architectures.config_of("smollm3")
    whole = map_of(config, "here")
    assert not whole.stopped
    assert not said

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no values here")

    monkeypatch.setattr("transformers.models.smollm3.modeling_smollm3.SmolLM3RotaryEmbedding.forward", broken)
    monkeypatch.setattr("mixprec.models.discover.maps._found", {})
    found = map_of(config, "here")
    assert found.stopped == "the pass of shapes stopped: RuntimeError: no values here"
    assert all(len(group) == 1 for group in found.groups)
    assert [each.address for each in found.linears] == [each.address for each in whole.linears]
    (line,) = said
    assert line.startswith("here: smollm3: which modules share an input is not known, the pass of shapes stopped")
    # Kept with its reason, which is told where the groups would have been needed.
    assert map_of(config, "here") is found
    with pytest.raises(UserError, match=r"q_proj: nothing is known .*\(the pass of shapes stopped: RuntimeError: no v"):
        freedom(found.groups[0], ())
    rules = [{"match": "1_q", "format": "w4g16"}]
    plan = build_plan(PlanSpec.model_validate({"default": "w8g16", "rules": rules}), found, "m", "rtn")
    with pytest.raises(UserError, match="layer 1's modules may be one matrix there, which is not known"):
        require(plan, found, config, Target("vllm", "compressed-tensors"))


def test_a_model_that_cannot_be_called_with_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: object, words: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mixprec.models.discover.maps._found", {})
    monkeypatch.setattr("transformers.models.smollm3.modeling_smollm3.SmolLM3Model.forward", other)
    with pytest.raises(UserError, match=r"here: SmolLM3ForCausalLM can't be called with tokens alone \(TypeError"):
        map_of(architectures.config_of("smollm3"), "here")


def test_a_cache_of_its_own_kind_does_not_stop_the_pass() -> None:
    found = map_of(architectures.config_of("minimax"), "here")
    assert not found.stopped
    assert ["q", "k", "v"] in [[linear.kind for linear in group] for group in found.groups]


def test_linear_modules_beside_what_is_taken_for_blocks_are_refused() -> None:
    config = AutoConfig.for_model("xlm", emb_dim=32, n_layers=2, n_heads=4, n_words=384, max_position_embeddings=64)
    with pytest.raises(UserError, match=r"XLMWithLMHeadModel has 67% .* beside what its blocks are taken for"):
        map_of(config, "here")


def test_sizes_that_differ_from_layer_to_layer_are_the_largest() -> None:
    found = map_of(architectures.config_of("gemma4_text", global_head_dim=16), "here")
    assert found.sizes.head == 16
    assert {linear.out_features for linear in found.linears if linear.kind == "q"} == {32, 64}


def test_labels_with_dots_are_selectors() -> None:
    found = map_of(AutoConfig.for_model("recurrent_gemma", **_RECURRENT), "here")
    (linear,) = select(found.linears, "1_temporal_block.linear_y")
    assert linear.address == "model.layers.0.temporal_block.linear_y"
    every = select(found.linears, "*_temporal_block.linear_y")
    assert [each.layer for each in every] == [1, 2]
    for each in found.linears:
        assert select(found.linears, each.label) == [each]
    # A glob whose beginning looks like a label is still one.
    assert select(found.linears, "*_block.linear_y") == every
    with pytest.raises(UserError, match="matches no module"):
        select(found.linears, "1_temporal_block.linear_z")


#: Two recurrences and attention.
_RECURRENT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8,
    "vocab_size": 384, "lru_width": 32, "attention_window_size": 32,
    "block_types": ["recurrent", "recurrent", "attention"],
}  # fmt: skip


@pytest.mark.parametrize("architecture", ["bloom", "qwen3_moe", "falcon_h1", "gemma3"])
def test_models_without_weights_have_their_tables(architecture: str) -> None:
    config = architectures.config_of(architecture)
    with without_weights():
        model = empty(config)
    whole = architectures.model_of(architecture)
    assert all(parameter.is_meta for parameter in model.parameters())
    expected = dict(whole.named_buffers())
    found = dict(model.named_buffers())
    assert found.keys() == expected.keys()
    for name, buffer in found.items():
        torch.testing.assert_close(buffer, expected[name], equal_nan=True)
    assert any(isinstance(module, nn.Linear) for module in model.modules())
