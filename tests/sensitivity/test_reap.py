"""REAP's saliency is that of a loop over transformers' own model; budgets drop the experts that are missed least."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXT, tokenizer

import mixprec as mp
from mixprec.core.errors import UserError
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan import bits
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.sensitivity import Sensitivity, parse_choice

GROUPED = {"n_routed_experts": 8, "num_local_experts": 8, "n_group": 2, "topk_group": 1}


@pytest.fixture(
    scope="module", params=architectures.slow_but(["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3"], "mixtral")
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' own mixture of experts, and its folder with a text."""
    folder = tmp_path_factory.mktemp(request.param)
    model = architectures.model_of(request.param, **(GROUPED if request.param == "deepseek_v3" else {}))
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    return model, folder


def by_hand(model: Any, tokens: torch.Tensor) -> dict[int, torch.Tensor]:
    """Layer -> (E,) mean of g ‖f(x)‖ over the tokens sent to each, of all tokens but the last of each sample."""
    found = {}
    for layer, block in enumerate(model.model.layers, 1):
        experts = getattr(block.mlp, "experts", None)
        if experts is None:
            continue
        seen: list[Any] = []
        hook = experts.register_forward_pre_hook(lambda _module, given, seen=seen: seen.append(given))
        for sample in tokens:
            with torch.no_grad():
                model(input_ids=sample[None, :], use_cache=False)
        hook.remove()
        count = len(experts.down_proj)
        sums, counts = torch.zeros(2, count, dtype=torch.float64)
        for hidden, chosen, weights in seen:
            for token in range(len(hidden) - 1):
                for place, number in enumerate(chosen[token].tolist()):
                    one = torch.tensor([[number]])
                    with torch.no_grad():  # the stack's own forward, of one token and one expert with weight 1
                        out = experts(hidden[token][None], one, torch.ones(1, 1))
                    sums[number] += float(weights[token, place]) * float(out.double().norm())
                    counts[number] += 1
        found[layer] = sums / counts.clamp(min=1)
    return found


def test_saliency_is_that_of_a_loop(made: tuple[Any, Path]) -> None:
    original, folder = made
    model = Model(folder / "model")
    calibrated = mp.calibrate(model, text=str(folder / "text.txt"), samples=3, tokens=16)
    scores = mp.sensitivity(model, calibrated, ["drop"], scorer="reap", samples=3)
    expected = by_hand(original, calibrated.tokens)
    assert expected.keys() == model.decoder.experts.keys()
    rows = {row["address"]: row["damage"] for row in scores.rows()}
    assert len(rows) == sum(len(each) for each in expected.values())
    for each in model.decoder.linears:
        if each.expert is not None and each.kind == "down":
            assert rows[each.address] == pytest.approx(float(expected[each.layer][each.expert]), rel=1e-5)


def test_what_contributes_least_goes(made: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = made
    model = Model(folder / "model")
    calibrated = mp.calibrate(model, text=str(folder / "text.txt"), samples=3, tokens=16)
    scores = mp.sensitivity(model, calibrated, ["drop"], scorer="reap", samples=3)
    decoder, size = model.decoder, len(next(iter(model.decoder.experts.values())))
    one = sum(each.weights for each in decoder.linears if each.expert is not None) // size
    whole = sum(each.weights for each in decoder.linears)
    gone = decoder.expert_groups
    plan = mp.plan(model, mp.Budget(effective_bits=16 * (1 - gone * one / whole) + 1e-6, scores=scores))
    rows = {row["address"]: row["damage"] for row in scores.rows()}
    for layer, numbers in decoder.experts.items():
        for start in range(0, size, size // gone):
            group = numbers[start : start + size // gone]
            down = {
                n: next(e for e in decoder.linears if (e.layer, e.expert, e.kind) == (layer, n, "down")) for n in group
            }
            least = min(group, key=lambda number: rows[down[number].address])
            dropped = {n for n in group if down[n].address in plan.content.dropped}
            assert dropped == {least}
    mp.compress(model, plan, tmp_path / "out")
    assert len(next(iter(Model(tmp_path / "out").decoder.experts.values()))) == size - gone


def mixture(experts: int = 3, layers: int = 2) -> Any:
    config = architectures.config_of(
        "mixtral", num_local_experts=experts, num_experts=experts, num_experts_per_tok=1, num_hidden_layers=layers,
        hidden_size=8, intermediate_size=8, num_attention_heads=1, num_key_value_heads=1, head_dim=8, vocab_size=16,
    )  # fmt: skip
    return decoder_of(config)


DECODER = mixture()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 0.99))
def test_the_budget_is_spent_best(seed: int, share: float) -> None:
    """Against all choices by hand, experts' formats tied by layer: one number for both layers, who goes by damage."""
    generator = torch.Generator().manual_seed(seed)
    scores = {
        each.address: {
            "w2": float(torch.rand(1, generator=generator)),
            "drop": 3 * float(torch.rand(1, generator=generator)),
        }
        if each.kind == "down" and each.expert is not None
        else {"w2": float(torch.rand(1, generator=generator))}
        for each in DECODER.linears
    }
    table = Sensitivity(model="m", identity="i", scorer="fisher", method="rtn", scores=scores)
    limit = 2 + share * 14
    words = {"effective_bits": limit, "candidates": ["w2", "keep", "drop"], "tie": "fused"}
    plan = budget_plan(BudgetSpec.model_validate(words), DECODER, "m", "rtn", table)
    account = bits.account(plan, DECODER)
    assert account.effective_bits <= limit + 1e-9
    assert damage_of(plan.formats, table) == pytest.approx(_best(table, limit), rel=1e-9, abs=1e-12)


def damage_of(formats: Any, table: Sensitivity) -> float:
    return sum(
        table.scores[address].get(str(format), 0.0) for address, format in formats.items() if str(format) != "keep"
    )


def _best(table: Sensitivity, limit: float) -> float:
    """The least damage of all plans that fit."""
    best = float("inf")
    weights = sum(each.weights for each in DECODER.linears)

    def drop(layer: int, number: int) -> float:
        return next(
            table.scores[e.address]["drop"]
            for e in DECODER.linears
            if (e.layer, e.expert, e.kind) == (layer, number, "down")
        )

    for count in range(3):
        gone = {
            (layer, number)
            for layer in (1, 2)
            for number in min(combinations(range(3), count), key=lambda chosen: sum(drop(layer, n) for n in chosen))
        }
        parts = [[e for e in group if (e.layer, e.expert) not in gone] for group in DECODER.fused]
        lost = sum(drop(*each) for each in gone)
        for chosen in product(("w2", "keep"), repeat=len(parts)):
            size = sum(
                bits.storage(e, parse_choice(name).format).bits
                for part, name in zip(parts, chosen, strict=True)
                for e in part
            )
            if size <= limit * weights:
                damage = sum(
                    table.scores[e.address]["w2"]
                    for part, name in zip(parts, chosen, strict=True)
                    for e in part
                    if name == "w2"
                )
                best = min(best, lost + damage)
    return best


def test_fisher_and_measurement_score_dropping_beside_formats(tmp_path: Path) -> None:
    """At the last linear of an expert alone; the measured one is the KL of the model whose expert puts out nothing."""
    original = architectures.model_of("mixtral")
    for layer in original.model.layers:
        layer.mlp.experts.down_proj.data.mul_(200)  # else little depends on experts, and KLs are rounding
    original.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    model = Model(tmp_path / "model")
    calibrated = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=2, tokens=16)
    scores = {
        scorer: mp.sensitivity(model, calibrated, ["w2g16", "drop"], method="rtn", scorer=scorer, samples=2)
        for scorer in ("fisher", "measured")
    }
    for found in scores.values():
        dropped = [row["address"] for row in found.rows() if row["format"] == "drop"]
        assert sorted(dropped) == sorted(
            each.address for each in model.decoder.linears if each.expert is not None and each.kind == "down"
        )
    address = "model.layers.1.mlp.experts.2.down_proj"
    measured = next(r["damage"] for r in scores["measured"].rows() if (r["address"], r["format"]) == (address, "drop"))
    tokens = calibrated.tokens
    with torch.no_grad():
        before = original(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        original.model.layers[1].mlp.experts.down_proj[2] = 0
        after = original(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    kl = torch.cat([kl[0, ::2], kl[1, 1::2]]).mean()  # every second prediction is compared, of each sample other ones
    assert measured == pytest.approx(float(kl), rel=1e-3)
    plan = mp.plan(model, mp.Budget(effective_bits=3, scores=scores["measured"], candidates=["w2g16", "keep", "drop"]))
    assert plan.account.effective_bits <= 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"active_bits": 3}, "a token meets as many experts as before"),
        ({"file_bytes": 10**6}, "give bytes in its place"),
        ({"effective_bits": 3, "allocation": "random"}, "says nothing of which experts go"),
        ({"effective_bits": 3, "exchange": {}}, "exchange measures plans of one model"),
        ({"effective_bits": 3, "pin": {"1_experts": "drop"}}, "as a candidate, as many of each layer, or by rules"),
    ],
)
def test_budgets_that_can_not_drop_say_so(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BudgetSpec.model_validate({"candidates": ["w2", "keep", "drop"], **words})


def test_reap_scores_experts_alone(tmp_path: Path) -> None:
    architectures.model_of("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    model = Model(tmp_path / "model")
    calibrated = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=2, tokens=16)
    with pytest.raises(UserError, match=r"reap scores routed experts, and .* has none"):
        mp.sensitivity(model, calibrated, ["drop"], scorer="reap", samples=2)
    with pytest.raises(UserError, match="formats: \\[drop\\] alone, not w3g16, drop"):
        mp.sensitivity(model, calibrated, ["w3g16", "drop"], scorer="reap")
    table = Sensitivity(
        model="m", identity="i", scorer="fisher", method="rtn",
        scores={each.address: {"w2": 1.0} for each in model.decoder.linears},
    )  # fmt: skip
    spec = BudgetSpec.model_validate({"effective_bits": 3, "candidates": ["w2", "drop"]})
    with pytest.raises(UserError, match="this model has no routed experts; leave drop out"):
        budget_plan(spec, model.decoder, "m", "rtn", table)
