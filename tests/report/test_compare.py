from __future__ import annotations

from typing import Any

from mixprec.report.compare import compressed, in_short, probes, verdict


def test_variants_are_told_apart_by_their_numbers(summary: dict[str, Any]) -> None:
    assert list(compressed(summary)) == ["w3", "w3_last_mlp", "w3_random"]
    assert list(probes(summary)) == ["only_last_up", "only_last_k"]


def test_the_verdict_tells_cost_gain_control_and_probes(summary: dict[str, Any]) -> None:
    cost, gain, control, probing = verdict(summary)
    assert "210 modules" in cost and "8.412 to 31.06" in cost
    assert "w3_last_mlp compresses 3 modules fewer than w3 at +0.33 effective bits" in gain
    assert "lowers KL from 1.72 to 1.31 [1.24, 1.38]; the paired difference is 0.410 [0.380, 0.440], which" in gain
    assert "At the same size, w3_random has KL 1.66" in gain and "w3_last_mlp is lower" in gain
    assert "[-0.0200, 0.140], which includes 0: this does not establish a difference" in control
    assert "only_last_up does the most damage" in probing and "14 times less" in probing


def test_the_verdict_follows_the_numbers(summary: dict[str, Any]) -> None:
    summary["variants"]["w3_last_mlp"] |= {"kl_mean": 1.9, "kl_mean_ci": [1.6, 2.2]}
    gain = verdict(summary)[1]
    assert "raises KL from 1.72 to 1.90" in gain
    assert "w3_last_mlp is higher" in gain


def test_another_size_is_no_control(summary: dict[str, Any]) -> None:
    summary["variants"]["w3_random"]["effective_bits"] = 3.7
    assert not any("same size" in sentence for sentence in verdict(summary))


def test_nothing_measured_nothing_said(summary: dict[str, Any]) -> None:
    for variant in summary["variants"].values():
        variant |= {"kl_mean": None, "kl_mean_ci": None, "perplexity": None}
    assert verdict(summary) == verdict({}) == verdict({"variants": {}}) == []
    assert in_short(summary) == in_short({}) == []


def test_without_intervals_no_difference_is_claimed(summary: dict[str, Any]) -> None:
    summary["differences"]["w3"]["w3_last_mlp"]["ci"] = None
    assert "no interval" in verdict(summary)[1]


def test_equal_plans_have_no_difference(summary: dict[str, Any]) -> None:
    summary["differences"]["w3"]["w3_last_mlp"] |= {"kl_difference": 0.0, "ci": [0.0, 0.0]}
    assert "every passage has the same KL with both." in verdict(summary)[1]


def test_a_variant_is_compared_with_its_own_method(summary: dict[str, Any], make_variant: Any) -> None:
    for name, quantized, kl in (("awq", 210, 0.9), ("awq_last_mlp", 207, 0.6)):
        found = make_variant("", 3.25 + (210 - quantized) / 9, quantized, kl, 15.0)
        summary["variants"][name] = found | {"methods": ["awq"], "engine": None}
    told = next(sentence for sentence in verdict(summary) if sentence.startswith("awq_last_mlp"))
    assert told.startswith("awq_last_mlp compresses 3 modules fewer than awq at") and "lowers KL from 0.900 to" in told


def test_variants_of_one_size_are_told_which_is_best(summary: dict[str, Any], make_variant: Any) -> None:
    for name, size, kl in (("spent", 3.5, 0.9), ("drawn", 3.49, 1.4), ("additive", 3.5, 1.0), ("larger", 3.6, 0.5)):
        summary["variants"][name] = make_variant("", size, 210, kl, 15.0)
    summary["differences"]["additive"] = {"spent": {"kl_difference": 0.1, "ci": [0.05, 0.15]}}
    told = next(sentence for sentence in verdict(summary) if sentence.startswith("Of the 3 variants of 3.50 effective"))
    assert "spent has the lowest KL, 0.900" in told and "and additive the next, 1.00" in told
    assert told.endswith("the paired difference is 0.100 [0.0500, 0.150], which excludes 0.")
    assert not any(sentence.startswith("larger") for sentence in verdict(summary))


def test_of_two_equal_variants_none_is_called_the_best(summary: dict[str, Any], make_variant: Any) -> None:
    summary["variants"] |= {name: make_variant("", 3.5, 210, 0.9, 15.0) for name in ("one", "other")}
    summary["differences"]["other"] = {"one": {"kl_difference": 0.0, "ci": [0.0, 0.0]}}
    told = next(sentence for sentence in verdict(summary) if sentence.startswith("Of the 2 variants of 3.50"))
    assert "one and other have the lowest KL, 0.900" in told and "next" not in told


def test_a_variant_that_keeps_nothing_is_compared_with_protection_of_its_size(
    summary: dict[str, Any], make_variant: Any
) -> None:
    size = summary["variants"]["w3_last_mlp"]["effective_bits"]
    summary["variants"]["spent"] = make_variant("", size, 210, 0.2, 15.0)
    summary["differences"]["w3_last_mlp"] = {"spent": {"kl_difference": 0.5, "ci": [0.4, 0.6]}}
    told = next(sentence for sentence in verdict(summary) if sentence.startswith("spent keeps no module"))
    assert "to 0.200" in told and "at the size of w3_last_mlp; the paired difference is 0.500" in told
    summary["variants"]["spent"]["effective_bits"] = size + 0.1
    assert not any(sentence.startswith("spent") for sentence in verdict(summary))


def test_many_protected_variants_are_cut_and_counted(summary: dict[str, Any], make_variant: Any) -> None:
    for index in range(6):
        name, kl = f"extra{index}", 1.5 - index / 100
        summary["variants"][name] = make_variant("", 4 + index / 10, 200, kl, 20)
    assert "The table has 4 more protected variants." in verdict(summary)
