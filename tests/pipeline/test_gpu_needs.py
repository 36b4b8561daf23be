"""GPUs, hours and downloads, from published sizes alone."""

from __future__ import annotations

import re

import pytest

from mixprec import pipeline, recipe
from mixprec.core.errors import UserError
from mixprec.pipeline import gpus
from mixprec.pipeline.checks import Checked
from mixprec.recipe import Recipe

KNOWN = recipe.catalogue()
ASKED = [name for name in KNOWN if name.startswith("paper/table")]


def loaded(name: str, *changes: str) -> tuple[Recipe, Checked]:
    chosen = recipe.load(KNOWN[name], changes)
    return chosen, pipeline.checked(chosen)


def test_the_largest_table() -> None:
    chosen, found = loaded("paper/table1_llama_70b")
    need = gpus.need(chosen, found)
    assert need is not None
    assert (need.gpus, need.least, need.outputs) == (4, 3, 13_992)
    assert need.weights == pytest.approx(141e9, rel=0.01)
    assert 5 < need.hours < 25 and need.most > 10 * need.hours
    assert gpus.downloads(chosen, found) == {"deepseek-ai/DeepSeek-R1-Distill-Llama-70B": need.weights}
    slower = gpus.need(chosen, found, "A100 80GB")
    assert slower is not None and need.hours < slower.hours < 3 * need.hours
    more = gpus.need(*loaded("paper/table1_llama_70b", "evaluate.engine.gpus=8"))
    assert more is not None and more.hours < need.hours and more.at_once > need.at_once


def test_too_few_gpus_are_told_with_how_many_hold_the_model() -> None:
    need = gpus.need(*loaded("paper/table1_llama_70b"), "RTX 4090 24GB")
    assert need is not None and need.least == 8 and need.at_once >= 1


def test_one_output_at_a_time_reads_all_weights_for_each_token() -> None:
    """By hand: 8.03 billion weights in 16 bits, and half of the cache, at 0.6 of 3.35 TB/s."""
    need = gpus.need(
        *loaded("paper/table8_llama_8b", "evaluate.limit=1", "evaluate.seeds=[0]", "evaluate.benchmarks=[musique]")
    )
    assert need is not None and need.outputs == need.at_once == 1
    tokens = 815_115 // 120
    step = (8.03e9 * 2 + 2 * 32 * 1024 * 2 * tokens / 2) / (0.6 * 3.35e12)
    assert need.hours == pytest.approx(tokens * step / 3600, rel=0.01)


def test_what_writes_nothing_needs_none() -> None:
    for name in ("quickstart", "small/table1", "paper/table6_llama_8b"):
        assert gpus.need(*loaded(name)) is None
    assert gpus.downloads(*loaded("quickstart")) == {}
    both = gpus.downloads(*loaded("paper/figures_llama_8b"))
    assert list(both) == ["deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.1-8B"]


@pytest.mark.parametrize(("name", "expected"), [("h100", "H100 80GB"), ("RTX 4090", "RTX 4090 24GB"), ("B9", None)])
def test_names_of_gpus(name: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UserError, match=r"--gpu: 'B9' is none of H100 80GB, "):
            gpus.find(name)
    else:
        assert gpus.find(name) == expected


@pytest.mark.parametrize("name", [name for name in ASKED if "dynamic" not in name])
def test_hours_in_the_catalogue_are_those_of_explain(name: str) -> None:
    chosen, found = loaded(name)
    need = gpus.need(chosen, found)
    told = re.search(r"about ([\d,]+) (h|min) on H100s by explain", chosen.about.takes)
    if need is None or told is None:
        assert need is None and told is None
        return
    hours = int(told[1].replace(",", "")) / (60 if told[2] == "min" else 1)
    assert hours == pytest.approx(need.hours, rel=0.2, abs=0.5)
