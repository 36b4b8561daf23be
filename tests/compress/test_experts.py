"""Experts are solved for the tokens that the router sends to each, and for all of the layer's where these are few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from safetensors.torch import load_file
from tiny import TEXT, tokenizer

import mixprec as mp
from mixprec.calibration.data import Calibration
from mixprec.compress.experts import Routed, by_expert, sent_to
from mixprec.compress.options import ExpertOptions, GuidedSpec, SolveOptions
from mixprec.core.errors import UserError
from mixprec.models.labels import select
from mixprec.models.model import Model
from mixprec.models.weights import blocks_of, map_in
from mixprec.walk.samples import Samples
from mixprec.walk.states import States

#: Tokens of three samples.
TOKENS = torch.arange(3, 3 + 3 * 20).view(3, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts on disk, with a tokenizer and a text."""
    folder = tmp_path_factory.mktemp("experts")
    architectures.model_of("qwen2_moe").save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    return folder


def calibration(weights: torch.Tensor | None = None) -> Calibration:
    return Calibration(TOKENS, weights, {}, "tokens")


def sent_in(model: Any, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the experts of a block of transformers' own model get: states (t, hidden), and the chosen experts (t, k)."""
    seen: list[Any] = []
    experts = model.model.layers[number].mlp.experts
    hook = experts.register_forward_pre_hook(lambda _module, given: seen.append(given))
    with torch.no_grad():
        model(input_ids=TOKENS)
    hook.remove()
    return seen[0][0].double(), seen[0][1]


@pytest.mark.parametrize("tokens", ["routed", "pooled", "all"])
@pytest.mark.parametrize("size", [1, 3])
def test_statistics_are_those_of_the_tokens_that_were_sent(
    folder: Path, tmp_path: Path, tokens: Any, size: int
) -> None:
    original = architectures.model_of("qwen2_moe")
    hidden, chosen = sent_in(original, 0)
    stacked = original.model.layers[0].mlp.experts
    counts = torch.rand(TOKENS.shape)
    model = Model(folder / "model").load().model
    samples = Samples(model, calibration(counts), States(10**9, tmp_path), size)
    block, known = blocks_of(model)[0], map_in(model).blocks[0]
    options = ExpertOptions(tokens=tokens, least=30)
    routed = Routed(block, "mlp.experts", sent_to(samples, 0, block, "mlp.experts"), options)
    groups = by_expert([group for group in known.groups if group.routed])
    assert list(groups) == [0, 1, 2, 3]
    flat = counts.flatten().double()
    for number, (gate_up, down) in groups.items():
        mine = (chosen == number).any(-1)
        assert routed.tokens(number) == int(mine.sum()) > 0
        if tokens == "all" or (tokens == "pooled" and int(mine.sum()) < 30):
            mine[:] = True
        x, w = hidden[mine], flat[mine]
        gate, up = (x @ stacked.gate_up_proj[number].double().T).chunk(2, -1)
        for group, inputs in ((gate_up, x), (down, torch.nn.functional.silu(gate) * up)):
            expected = 2 * (inputs * w[:, None]).T @ inputs / w.sum()
            with torch.no_grad():
                found = routed.statistics(number, group, drift=False)
            assert found is not None
            scale = found.hessian.double().diagonal().sum() / expected.diagonal().sum()
            torch.testing.assert_close(found.hessian.double() / scale, expected, rtol=1e-4, atol=1e-6)


def one_sided(folder: Path) -> Path:
    """A model whose routers never choose the last expert: its score is the mean of the others', the best one's wins."""
    model = architectures.model_of("qwen2_moe", num_experts_per_tok=1)
    for layer in model.model.layers:
        layer.mlp.gate.weight.data[3] = layer.mlp.gate.weight.data[:3].mean(0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_an_expert_that_no_token_reached(tmp_path: Path) -> None:
    model = Model(one_sided(tmp_path / "model"))
    plan = mp.plan(model, "w3g16", method="gptq")
    routed = SolveOptions(experts=ExpertOptions(tokens="routed"))
    found = mp.compress(model, plan, tmp_path / "routed", calibration=_calibrated(model, tmp_path), options=routed)
    rows = {row["address"]: row for row in found.rows()}
    lonely, busy = (rows[f"model.layers.0.mlp.experts.{number}.up_proj"] for number in (3, 0))
    assert (lonely["tokens"], lonely["fallback"], lonely["method"]) == (0, "rtn", "gptq")
    assert 0 < busy["tokens"] <= 3 * 24 and not busy["fallback"]
    pooled = mp.compress(model, plan, tmp_path / "pooled", calibration=_calibrated(model, tmp_path))
    rows = {row["address"]: row for row in pooled.rows()}
    assert not any(row["fallback"] for row in rows.values())
    assert rows["model.layers.0.mlp.experts.3.down_proj"]["tokens"] == 0


def _calibrated(model: Model, folder: Path) -> Any:
    (folder / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    return mp.calibrate(model, text=str(folder / "text.txt"), samples=3, tokens=24)


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_micro_batches_and_memory_change_nothing(folder: Path, tmp_path: Path, method: str) -> None:
    model = Model(folder / "model")
    calibrated = mp.calibrate(model, text=str(folder / "text.txt"), samples=5, tokens=24)
    plan = mp.plan(model, "w3g16", method=method)
    files = []
    for name, memory in (("much", 4.0), ("little", 1e-6)):
        mp.compress(model, plan, tmp_path / name, calibration=calibrated, memory_gb=memory)
        files.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(files[0][name].equal(files[1][name]) for name in files[0])


def test_a_loaded_model_gets_what_a_checkpoint_would_and_keeps_its_stacks(folder: Path, tmp_path: Path) -> None:
    model, loaded = Model(folder / "model"), architectures.model_of("qwen2_moe")
    calibrated = mp.calibrate(model, text=str(folder / "text.txt"), samples=3, tokens=24)
    plan = mp.plan(model, "w3g16", method="gptq")
    stacks = [layer.mlp.experts for layer in loaded.model.layers]
    mp.quantize_(loaded, plan, calibrated)
    assert [layer.mlp.experts for layer in loaded.model.layers] == stacks
    mp.compress(model, plan, tmp_path / "out", calibration=calibrated)
    written = type(loaded).from_pretrained(tmp_path / "out")
    for name, tensor in written.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_selectors_of_experts(folder: Path) -> None:
    linears = Model(folder / "model").decoder.linears

    def labels(selector: str) -> list[str]:
        return [linear.label for linear in select(linears, selector)]

    assert labels("1_up.e2") == ["1_up.e2"]
    assert labels("2_up") == [f"2_up.e{number}" for number in range(4)]
    assert len(labels("1_experts")) == 12 and len(labels("experts")) == 24
    assert labels("*_down.e*") == [f"{layer}_down.e{number}" for layer in (1, 2) for number in range(4)]
    assert labels("last_shared") == ["2_shared_gate", "2_shared_up", "2_shared_down"]
    assert len(labels("last_mlp")) == 15
    with pytest.raises(UserError, match=r"kinds q, k, v, o, gate, up, down, shared_gate, .*attn, mlp, experts, shared"):
        labels("last_foo")


def test_runtimes_want_one_format_for_the_experts_of_a_layer(folder: Path) -> None:
    model = Model(folder / "model")
    plan = mp.plan(model, {"default": "w4g16", "method": "rtn", "rules": [{"match": "1_up.e2", "format": "w8g16"}]})
    with pytest.raises(UserError, match="layer 1's experts are one matrix there, and have w4g16 and w8g16"):
        plan.check(runtime="vllm", format="compressed-tensors")
    tied = mp.plan(model, {"default": "w4g16", "tie": "fused", "rules": [{"match": "1_up.e2", "format": "keep"}]})
    kept = [row["label"] for row in tied.rows() if row["format"] == "keep"]
    assert len(kept) == 12 and all(label.startswith("1_") and ".e" in label for label in kept)


def test_scores_a_budget_and_a_packed_checkpoint(folder: Path, tmp_path: Path) -> None:
    model, text = Model(folder / "model"), str(folder / "text.txt")
    calibrated = mp.calibrate(model, text=text, samples=4, tokens=24)
    scores = mp.sensitivity(model, calibrated, formats=["w2g8", "w4g8"], method="gptq")
    assert {row["address"] for row in scores.rows()} == {linear.address for linear in model.decoder.linears}
    plan = mp.plan(model, mp.Budget(effective_bits=5.0, scores=scores, tie="fused"))
    by_layer = {(row["label"].split("_")[0], row["format"]) for row in plan.rows() if ".e" in row["label"]}
    assert len(by_layer) == 2
    packed = mp.compress(model, plan, tmp_path / "packed", calibration=calibrated, format="compressed-tensors")
    dense = mp.compress(model, plan, tmp_path / "dense", calibration=calibrated)
    kls = [mp.evaluate(each, reference=model, text=text).kl for each in (packed, dense)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-6)


def test_a_budget_of_active_bits_counts_experts_by_their_tokens(folder: Path, tmp_path: Path) -> None:
    model, text = Model(folder / "model"), str(folder / "text.txt")
    calibrated = mp.calibrate(model, text=text, samples=4, tokens=24)
    scores = mp.sensitivity(model, calibrated, formats=["w2g8", "w8g8"], method="rtn")
    plan = mp.plan(model, mp.Budget(active_bits=6.0, scores=scores, candidates=["w2g8", "w8g8"]))
    bits = {row["address"]: float(row["effective_bits"]) for row in plan.rows()}
    # 2 of 4 experts work on a token.
    share = {linear: 0.5 if linear.expert is not None else 1.0 for linear in model.decoder.linears}
    active = sum(bits[linear.address] * linear.weights * part for linear, part in share.items())
    mean = active / sum(linear.weights * part for linear, part in share.items())
    assert 5.8 < mean <= 6.0


@pytest.mark.parametrize("size", [1, 2])
def test_tokens_in_one_row_count_by_their_weights(folder: Path, tmp_path: Path, size: int) -> None:
    # The shared expert is given all samples' tokens in one row.
    original, counts = architectures.model_of("qwen2_moe"), torch.rand(TOKENS.shape)
    seen: list[torch.Tensor] = []
    shared = original.model.layers[0].mlp.shared_expert.gate_proj
    shared.register_forward_pre_hook(lambda _module, given: seen.append(given[0].double()))
    with torch.no_grad():
        original(input_ids=TOKENS)
    model = Model(folder / "model").load().model
    block, known = blocks_of(model)[0], map_in(model).blocks[0]
    group = next(group for group in known.groups if group[0].kind == "shared_gate")
    samples = Samples(model, calibration(counts), States(10**9, tmp_path), size)
    with torch.no_grad():
        ((found,),) = samples.statistics(0, block, [group])
    x, w = seen[0], counts.flatten().double()
    expected = (x * w[:, None]).T @ x
    ratio = found.hessian.double().diagonal().sum() / expected.diagonal().sum()
    torch.testing.assert_close(found.hessian.double() / ratio, expected, rtol=1e-4, atol=1e-6)


def test_guided_solves_of_shared_experts(folder: Path, tmp_path: Path) -> None:
    model = Model(folder / "model")
    calibrated = mp.calibrate(model, text=str(folder / "text.txt"), samples=3, tokens=24)
    guided = SolveOptions(guided=GuidedSpec())
    made = mp.compress(
        model, mp.plan(model, "w3g8", method="gptq"), tmp_path / "out", calibration=calibrated, options=guided
    )
    assert not any(row["fallback"] for row in made.rows())
