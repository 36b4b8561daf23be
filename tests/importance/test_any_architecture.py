"""Attribution of every architecture of the list against full backpropagation through transformers' unmodified model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import architectures
import pytest
import torch
from reference import attributed, layout_of, relative_error, swept
from tiny import tokenizer, write_traces
from torch import nn
from transformers import AutoConfig
from unmodified import Wide, full_backpropagation, model_in_float64, outputs_of

from mixprec.core.errors import UserError
from mixprec.importance import paths, probing, streaming
from mixprec.importance.attribute import attribute
from mixprec.importance.engine import Job, Layout
from mixprec.importance.paths import path_of
from mixprec.importance.windows import Window
from mixprec.models.discover.building import class_of
from mixprec.models.experts import unstack
from mixprec.models.model import Model
from mixprec.traces import spans, store
from mixprec.walk.blocks import Live

#: Relative error in float64, 1e-9 for all others. MiniMax's decays are rounded to float32 when the model is made, those
#: of blocks of tokens and of single tokens each for itself.
#: XGLM computes in float32 at most. Nemotron-H takes single tokens, such as a span of one position, through a function
#: of transformers that computes in float32, blocks of tokens through another.
TOLERANCES: Final[Mapping[str, float]] = {"minimax": 1e-6, "xglm": 1e-5, "nemotron_h": 1e-4}
#: At the start, one after another, of two tokens, of a single one, overlapping, to the very end.
WINDOWS = [Window(0, 0, 6), Window(0, 6, 8), Window(2, 9, 10), Window(2, 8, 21), Window(3, 12, 24)]
TOKENS = torch.randint(3, 300, (24,), generator=torch.Generator().manual_seed(5))
ROWS = torch.rand(2, 24, generator=torch.Generator().manual_seed(6))


def both(architecture: str, **changes: Any) -> tuple[Any, Any]:
    """transformers' model, and the same one with its experts as modules."""
    dtype = torch.float32 if architecture == "xglm" else torch.float64
    theirs = model_in_float64(architectures.model_of(architecture, **changes), dtype)
    ours = copy.deepcopy(theirs)
    unstack(ours)
    return theirs, ours


def check(theirs: Any, ours: Any, tolerance: float) -> None:
    layout = layout_of(ours)
    found = attributed(ours, layout, TOKENS, ROWS, WINDOWS, chunk_tokens=10, batch_tokens=12)
    reached = set()
    for window, gradients in zip(WINDOWS, found.gradients, strict=True):
        expected = full_backpropagation(theirs, list(layout.modules), TOKENS, window)
        # An expert that no token was sent to has no gradient.
        assert all(".experts." in name for name in layout.modules.keys() - expected.keys())
        reached |= {name for name, gradient in expected.items() if gradient.any()}
        reference = torch.cat(
            [expected.get(name, torch.zeros(s.stop - s.start)).to(gradients) for name, s in layout.slices.items()]
        )
        if window.compute:
            assert relative_error(gradients, reference) < tolerance
        else:
            assert not reference.any()
            assert not gradients.any()
    assert len(reached) > 0.8 * len(layout.modules)
    for name, sums in outputs_of(theirs, list(layout.modules), TOKENS, ROWS).items():
        assert relative_error(found.row_sums[:, layout.slices[name]].double(), sums) < tolerance


@pytest.mark.parametrize("architecture", architectures.ALL)
def test_gradients_are_those_of_full_backpropagation(architecture: str) -> None:
    theirs, ours = both(architecture)
    with Wide():
        assert path_of(Live(ours)).path == architectures.PATHS.get(architecture, "packed")
        check(theirs, ours, TOLERANCES.get(architecture, 1e-9))


@pytest.mark.parametrize("architecture", ["gpt_oss", "qwen3_next", "granitemoehybrid"])
@pytest.mark.parametrize("way", ["stepwise", "whole"])
def test_slower_ways_give_the_same(architecture: str, way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = both(architecture)
    monkeypatch.setattr("mixprec.importance.engine.path_of", lambda opened: paths.Chosen(way))
    with Wide():
        check(theirs, ours, 1e-9)


def test_a_span_that_its_cache_gets_wrong_is_computed_as_a_part_of_a_whole_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, ours = both("qwen3_next")
    # Forgets the state whenever several tokens come.
    monkeypatch.setattr("mixprec.importance.spans._SpanCache.get_recurrent_state", lambda *_, **__: None)
    monkeypatch.setattr("mixprec.importance.engine.path_of", lambda opened: paths.Chosen("cached"))
    with Wide():
        check(theirs, ours, 1e-9)


def test_a_mixer_that_forgets_its_state_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixprec.importance.spans._SpanCache.get_recurrent_state", lambda *_, **__: None)
    _, ours = both("qwen3_next")
    assert path_of(Live(ours)).path == "whole"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_paths_are_the_same_in_other_types(dtype: torch.dtype) -> None:
    for architecture in ("mixtral", "gemma2", "deepseek_v3", "gpt_oss", "bamba"):
        model = architectures.model_of(architecture).to(dtype).requires_grad_(False)
        unstack(model)
        assert path_of(Live(model)).path == architectures.PATHS.get(architecture, "packed")


def test_attention_that_is_cut_into_chunks_far_away_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4's masks: no argument tells the attention of them, and a short probe doesn't meet them."""
    from transformers.models.llama import modeling_llama

    def chunked(**arguments: Any) -> Any:
        return arguments.pop("create")(
            **arguments, and_mask_function=lambda batch, head, query, key: query // 100 == key // 100
        )

    create = modeling_llama.create_causal_mask
    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **given: chunked(create=create, **given))
    model = architectures.model_of("llama").requires_grad_(False)
    assert "keys" in (probing.why_not_packed(Live(model)) or "")


def test_the_path_is_said_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(paths.console, "print", lambda *lines, **_: said.extend(map(str, lines)))
    write_traces(tmp_path / "traces.jsonl")
    annotated = [spans.char_spans(trace, "paper") for trace in store.load(str(tmp_path / "traces.jsonl"))][:1]
    for architecture, path in (("qwen3_moe", "packed"), ("gpt_oss", "cached")):
        loaded = saved(tmp_path / architecture, architecture).load()
        for out in ("one", "two"):
            folder = tmp_path / architecture / out
            made = attribute(loaded, annotated, folder, presets=["paper"], identity="m", resamples=0)
        assert made["provenance"]["attribution"] == path
        assert {"1_up.e3", "2_down.e0"} <= {row["label"] for row in made["modules"]}
    (line,) = [line for line in said if line.startswith("attribution")]
    assert "cached" in line and "s_aux" in line


def saved(folder: Path, architecture: str) -> Model:
    model = architectures.model_of(architecture)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Model(folder)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "deepseek_v3", "phi3", "gemma3"])
def test_streamed_experts_and_others_give_the_same_bits(architecture: str, tmp_path: Path) -> None:
    model = saved(tmp_path, architecture)
    whole, empty = model.load(), streaming.open_model(model)
    assert path_of(empty).path == "packed"
    work = Job(TOKENS, ROWS, WINDOWS)
    one = attributed(whole.model, Layout.of_linears(whole.linears), *work)
    (other,) = swept(empty, Layout.of_linears(empty.linears), [work])
    assert one.gradients.any()
    assert torch.equal(one.row_sums, other.row_sums)
    assert torch.equal(one.gradients, other.gradients)


def test_what_cannot_be_streamed_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.jsonl")
    annotated = [spans.char_spans(trace, "paper") for trace in store.load(str(tmp_path / "traces.jsonl"))]
    for architecture in ("gpt_oss", "lfm2"):
        empty = streaming.open_model(saved(tmp_path / architecture, architecture))
        with pytest.raises(UserError, match=r"stream: .*leave out stream"):
            attribute(empty, annotated, tmp_path / "out", presets=["paper"], identity="m")


def test_arguments_of_attention_that_are_not_known_are_never_dropped() -> None:
    from mixprec.importance.attention import KeyValueCache, NotPacked, Prefill, _attention

    query = torch.ones(1, 2, 3, 4)
    module = nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    state = Prefill(KeyValueCache(3), 0, 3, torch.device("cpu"))
    _attention(module, query, query, query, None, trace_state=state, position_ids=torch.arange(3))
    for strange in ({"s_aux": torch.ones(2)}, {"new_thing": 1.0}, {"dropout": 0.1}):
        with pytest.raises(NotPacked):
            _attention(module, query, query, query, None, trace_state=state, **strange)  # type: ignore[arg-type]


def test_attention_that_chooses_its_keys_is_refused() -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
             "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}  # fmt: skip
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
               "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}  # fmt: skip
    index = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}
    shape = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = AutoConfig.for_model("deepseek_v32", **shape, **heads, **experts, **index)
    kind = class_of(config)
    assert kind is not None
    model = kind._from_config(config).eval().requires_grad_(False)
    unstack(model)
    with pytest.raises(UserError, match=r"deepseek_v32: \S+indexer\S+ chooses the keys that attention looks at"):
        path_of(Live(model))
