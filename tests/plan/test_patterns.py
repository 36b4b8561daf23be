"""Patterns for sets of names: exactly these names and no other, whatever the set."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.plan.patterns import blocks, globs, number_globs, regexes

TAILS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_proj", "norm")
NAMES = [
    f"model.layers.{block}.{tail}" for block in (0, 1, 2, 9, 10, 11, 12, 20, 21, 99, 100, 110, 122) for tail in TAILS
]
quick = settings(deadline=None, max_examples=40)
sets = st.sets(st.sampled_from(NAMES), min_size=1, max_size=60)


@quick
@given(st.sets(st.integers(0, 1500), min_size=1, max_size=40))
def test_numbers(numbers: set[int]) -> None:
    found = [re.compile(fnmatch.translate(glob)) for glob in number_globs(numbers)]
    for number in range(1501):
        assert sum(bool(glob.match(str(number))) for glob in found) == (number in numbers)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([7], ["7"]),
        ([0, 5], ["[05]"]),
        (range(32), ["[0-9]", "[12][0-9]", "3[01]"]),
        ([0, 1, 2, 3, 4, 5, 9, 21], ["[0-59]", "21"]),
        (range(200), ["[0-9]", "[1-9][0-9]", "1[0-9][0-9]"]),
    ],
)
def test_numbers_are_short(numbers: list[int], expected: list[str]) -> None:
    assert number_globs(numbers) == expected


@quick
@given(sets)
def test_regexes_match_each_name_once_and_no_other(chosen: set[str]) -> None:
    patterns = [re.compile(pattern) for pattern in regexes(sorted(chosen))]
    # search, match and fullmatch are one for anchored patterns; targets differ in which they call.
    for name in [*NAMES, "lm_head", "model.norm", "xmodel.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj.weight"]:
        for how in ("search", "match", "fullmatch"):
            assert sum(bool(getattr(pattern, how)(name)) for pattern in patterns) == (name in chosen)


@quick
@given(sets)
def test_globs_match_each_name_once_and_no_other(chosen: set[str]) -> None:
    patterns = [re.compile(fnmatch.translate(glob)) for glob in globs(sorted(chosen))]
    for name in [*NAMES, "lm_head", "model.layers.1.mlp.up_proj.weight"]:
        assert sum(bool(pattern.match(name)) for pattern in patterns) == (name in chosen)


def test_a_whole_model_is_one_pattern() -> None:
    everything = [f"model.layers.{block}.{tail}" for block in range(30) for tail in TAILS[:4]]
    assert regexes(everything) == [
        r"^model\.layers\.([0-9]|[12][0-9])\.(self_attn\.(q_proj|k_proj)|mlp\.(up_proj|down_proj))$"
    ]


def test_names_outside_of_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="lm_head stands in no block"):
        blocks(["model.layers.0.mlp.up_proj", "lm_head"])


def test_names_outside_the_blocks_stand_for_themselves() -> None:
    found = regexes(["lm_head", "model.layers.0.mlp.up_proj", "model.embed_tokens"])
    assert found == ["^lm_head$", r"^model\.embed_tokens$", r"^model\.layers\.0\.mlp\.up_proj$"]
    assert not any(re.match(each, name) for each in found for name in ("lm_heads", "my.lm_head", "model_embed_tokens"))
