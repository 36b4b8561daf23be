"""Blocks taken one by one give what their model computes, or the model is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from tiny import SHAPE, TEXT, tokenizer
from transformers import AutoConfig

import mixprec as mp
from mixprec.core.errors import UserError
from mixprec.models.discover.building import class_of
from mixprec.models.experts import unstack
from mixprec.models.model import Model
from mixprec.walk import whole
from mixprec.walk.blocks import block_inputs
from mixprec.walk.whole import why_not_walked

_MIXTURE = {**SHAPE, "vocab_size": 384, "moe_intermediate_size": 32}
_SHARING = {**SHAPE, "vocab_size": 384, **architectures.OTHERS["gemma4_text"], "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}  # fmt: skip
#: model_type -> its configuration, and why its blocks can't be taken one by one.
_REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "zaya": ({**_MIXTURE, "num_experts": 4, "router_hidden_size": 16}, "block 2 is given prev_router_hidden_states"),
    "gemma4_text": (_SHARING, "they hand shared_kv_states to one another"),
}

_BIASED = {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "vocab_size": 384, "n_positions": 64}


def model_of(architecture: str, keys: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **keys)
    kind = class_of(config)
    assert kind is not None
    return kind._from_config(config).eval()


@pytest.mark.parametrize("architecture", ["smollm3", "gpt_oss", "qwen3_next", "bamba", "bloom", "minimax", "gemma3"])
def test_tested_architectures_are_walked(architecture: str) -> None:
    assert why_not_walked(architectures.config_of(architecture)) is None


@pytest.mark.parametrize("architecture", _REFUSED)
def test_what_blocks_hand_to_one_another_is_named(architecture: str, tmp_path: Path) -> None:
    keys, why = _REFUSED[architecture]
    original = model_of(architecture, keys)
    original.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    model = Model(tmp_path / "model")
    calibration = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=2, tokens=16)
    for _ in range(2):  # the verdict is kept
        with pytest.raises(UserError, match=rf"{architecture}\): its blocks, .*{why}.*; compress it by rtn"):
            mp.compress(model, mp.plan(model, "w4g16", method="gptq"), tmp_path / "out", calibration=calibration)
    # The remedy works.
    mp.compress(model, mp.plan(model, "w4g16", method="rtn"), tmp_path / "rtn")
    assert Model(tmp_path / "rtn").load().linears


def test_a_norm_that_is_not_behind_the_blocks_is_seen() -> None:
    """TrOCR's last norm is in front of them; with weights of 1 it would change nothing of what they leave."""
    keys = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 384}
    assert "not followed by the norm alone" in str(why_not_walked(AutoConfig.for_model("trocr", **keys)))


def test_what_is_done_between_blocks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the last of them leaves, and what is done beside the norm behind them."""
    from transformers.models.smollm3 import modeling_smollm3

    forward = modeling_smollm3.SmolLM3Model.forward

    def scaled(self: Any, *given: Any, **named: Any) -> Any:
        made = forward(self, *given, **named)
        made.last_hidden_state = 2 * made.last_hidden_state
        return made

    config = architectures.config_of("smollm3")
    assert why_not_walked(config) is None
    with monkeypatch.context() as patched:
        patched.setattr(modeling_smollm3.SmolLM3Model, "forward", scaled)
        assert "not followed by the norm alone" in str(why_not_walked(config))
    layer = modeling_smollm3.SmolLM3DecoderLayer.forward

    def remembers(self: Any, hidden_states: torch.Tensor, **named: Any) -> Any:
        before = self.__class__.__dict__.get("kept")
        made = layer(self, hidden_states, **named)
        self.__class__.kept = made
        return made if before is None or before.shape != made.shape else made + before

    monkeypatch.setattr(modeling_smollm3.SmolLM3DecoderLayer, "forward", remembers)
    monkeypatch.setattr(modeling_smollm3.SmolLM3DecoderLayer, "kept", None, raising=False)
    assert why_not_walked(config) is not None


def test_families_of_tables_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(whole, "_reasons", {})
    monkeypatch.setattr(whole, "why_not_walked", lambda config: tried.append(config.model_type))
    for architecture in ("llama", "qwen3", "smollm3"):
        model = architectures.model_of(architecture)
        for _ in range(2):
            block_inputs(model, torch.arange(4)[None])
    other = architectures.model_of("smollm3", seed=1)  # of the same structure
    block_inputs(other, torch.arange(4)[None])
    assert tried == ["smollm3"]


@pytest.mark.parametrize("architecture", ["falcon_h1", "gptj"])
def test_tables_of_blocks_stay_when_their_weights_go(architecture: str, tmp_path: Path) -> None:
    original = architectures.model_of(architecture)
    original.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    opened = Model(tmp_path).open_blocks()
    unstack(original)
    for _ in range(2):
        with opened.block(0) as block:
            assert not any(tensor.is_meta for tensor in (*block.parameters(), *block.buffers()))
    assert all(parameter.is_meta for parameter in block.parameters())


def test_parameters_beside_the_blocks_are_read(tmp_path: Path) -> None:
    """Those that the decoder holds itself, and the bias of a head that is tied."""
    keys, _ = _REFUSED["zaya"]
    scaled = model_of("zaya", keys)
    scaled.model.input_hidden_states_scale.data.fill_(3.0)
    biased = model_of(
        "ctrl", {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "vocab_size": 384, "n_positions": 64}
    )
    biased.lm_head.bias.data.normal_()
    for name, original in (("scaled", scaled), ("biased", biased)):
        original.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        model = Model(tmp_path / name).open_blocks().model
        expected = original.state_dict()
        beside = {key: tensor for key, tensor in model.state_dict().items() if not tensor.is_meta}
        assert all(tensor.equal(expected[key]) for key, tensor in beside.items())
        assert {"scaled": "model.input_hidden_states_scale", "biased": "lm_head.bias"}[name] in beside
