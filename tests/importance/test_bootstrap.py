"""Resampled importance against scores.score on trace files that were copied and left out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import layout_of, save_statistics, tiny_model
from scipy.stats import spearmanr
from test_scores import run

from mixprec.importance import artifact, bootstrap, scores, statistics
from mixprec.importance import attribute as stage
from mixprec.importance.options import PRESETS, AttributionOptions
from mixprec.importance.statistics import PresetStatistics, TraceStatistics
from mixprec.traces import spans, store

SLICES = {"a": slice(0, 5), "b": slice(5, 6), "c": slice(6, 14), "dead": slice(14, 17)}
OPTIONS = [
    AttributionOptions.of("paper"),
    AttributionOptions.of("released"),
    AttributionOptions(absolute="inside"),
    AttributionOptions(divisor="spans", alias_means=True),
]
options = pytest.mark.parametrize("chosen", OPTIONS, ids=["paper", "released", "inside", "alias"])


def write_statistics(folder: Path, traces: int, seed: int, chosen: AttributionOptions) -> list[Path]:
    """Random statistics of so many traces: behaviours that are missing here and there, a module that is all zero."""
    generator = torch.Generator().manual_seed(seed)
    paths = list(statistics.paths(folder, traces))
    for number, path in enumerate(paths):
        windows = torch.randint(0, 4, (4,), generator=generator)
        windows[3] = number == 0  # one behaviour in one trace only
        owners = torch.repeat_interleave(torch.arange(4), windows)
        if chosen.absolute == "outside":
            owners = owners.unique()
        wide = 1.0 + torch.randn(6 + len(owners), 17, generator=generator)
        wide[:, SLICES["dead"]] = 0
        tokens = int(torch.randint(20, 60, (), generator=generator))
        counts = windows.float() * 3
        data = PresetStatistics(wide[1:5] * counts[:, None], counts, windows, wide[6:], owners)
        save_statistics(path, TraceStatistics(tokens, wide[0] * tokens, {"p": data}), "stamp")
    return paths


def check_against_copies(
    paths: Sequence[Path],
    preset: str,
    slices: dict[str, slice],
    chosen: AttributionOptions,
    weights: torch.Tensor,
    folder: Path,
) -> None:
    found = bootstrap.importance(paths, preset, slices, chosen, weights)
    for number, row in enumerate(weights.tolist()):
        copies = []
        for path, times in zip(paths, row, strict=True):
            for time in range(times):
                copies.append(folder / f"{number}-{path.stem}-{time}.safetensors")
                shutil.copyfile(path, copies[-1])
        expected = scores.score(copies, preset, slices, chosen)[0].importance
        assert torch.allclose(found[number], expected, rtol=1e-8, atol=1e-12 * float(expected.max()))


@pytest.mark.parametrize("preset", PRESETS)
def test_resamples_of_a_model_are_those_of_copied_traces(preset: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    layout = layout_of(model)
    paths = run(model, layout, tmp_path)
    weights = torch.tensor([[1, 1, 1], [2, 0, 1], [0, 3, 0], [1, 2, 0], [0, 0, 3]])
    chosen = AttributionOptions.of(preset)  # type: ignore[arg-type]
    check_against_copies(paths, preset, layout.slices, chosen, weights, tmp_path)


@options
def test_resamples_of_random_statistics_are_those_of_copied_traces(
    chosen: AttributionOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_statistics(tmp_path, 7, 1, chosen)
    weights = torch.cat([torch.ones(1, 7, dtype=torch.long), bootstrap.draw(7, 12)])
    check_against_copies(paths, "p", SLICES, chosen, weights, tmp_path)
    # Neither the size of blocks nor that of groups of rows matters.
    monkeypatch.setattr(bootstrap, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(bootstrap, "_ROWS", 3)
    check_against_copies(paths, "p", SLICES, chosen, weights, tmp_path)


def test_a_steering_vector_of_length_zero_stays_zero(tmp_path: Path) -> None:
    """The behaviour's mean is the trace's mean everywhere: their difference must not be blown up from rounding."""
    generator = torch.Generator().manual_seed(0)
    paths = list(statistics.paths(tmp_path, 3))
    for path in paths:
        mean = torch.randn(17, generator=generator)
        ones, gradient = torch.ones(4), torch.randn(4, 17, generator=generator)
        data = PresetStatistics(mean.expand(4, 17) * 7, ones * 7, ones.long(), gradient, torch.arange(4))
        save_statistics(path, TraceStatistics(7, mean * 7, {"p": data}), "stamp")
    found = bootstrap.importance(paths, "p", SLICES, OPTIONS[0], bootstrap.draw(3, 20))
    assert not found.any()


def test_draws_are_samples_of_the_same_size_and_the_same_every_time() -> None:
    weights = bootstrap.draw(9, 500)
    assert weights.shape == (500, 9) and set(weights.sum(1).tolist()) == {9} and int(weights.max()) > 2
    assert torch.equal(weights, bootstrap.draw(9, 500)) and not torch.equal(weights, bootstrap.draw(9, 500, seed=1))
    assert abs(float(weights.double().var(0).mean()) - 8 / 9) < 0.1  # binomial(9, 1/9)


def summary_of(folder: Path, chosen: AttributionOptions, resamples: int = 200, traces: int = 8) -> list[dict[str, Any]]:
    paths = write_statistics(folder, traces, 2, chosen)
    result = scores.score(paths, "p", SLICES, chosen)[0].importance
    return bootstrap.intervals(paths, "p", SLICES, chosen, result, resamples)


@options
def test_a_behaviour_counts_only_the_resamples_that_have_it(chosen: AttributionOptions, tmp_path: Path) -> None:
    first, *_, rare = summary_of(tmp_path, chosen)
    files = statistics.paths(tmp_path, 8)
    having = [number for number, path in enumerate(files) if statistics.load(path, "p").presets["p"].spans[0]]
    assert 1 < len(having) < 8
    assert first["stability"]["resamples"] == sum(
        any(row[n] for n in having) for row in bootstrap.draw(8, 200).tolist()
    )
    assert all(0 < low < high for low, high in first["intervals"][:3])
    assert first["intervals"][3] == [0, 0]
    # In one trace of eight: nothing to resample.
    assert rare == {"intervals": None, "rank_intervals": None, "stability": None}


@pytest.mark.parametrize(("resamples", "traces"), [(0, 8), (50, 1)])
def test_without_resamples_or_traces_there_are_no_intervals(resamples: int, traces: int, tmp_path: Path) -> None:
    for entry in summary_of(tmp_path, OPTIONS[0], resamples, traces):
        assert entry == {"intervals": None, "rank_intervals": None, "stability": None}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 20))
def test_stability_is_what_scipy_says(seed: int, modules: int, resamples: int) -> None:
    generator = np.random.default_rng(seed)
    full = generator.random(modules)
    samples = full + generator.random((resamples, modules))
    found = bootstrap.summarise(full.tolist(), torch.from_numpy(samples))
    rho = [spearmanr(full, sample).statistic for sample in samples]
    assert found["stability"]["spearman_mean"] == pytest.approx(np.mean(rho), abs=1e-5)
    assert found["stability"]["spearman_p5"] == pytest.approx(np.quantile(rho, 0.05), abs=1e-5)
    overlaps = [artifact.agreement(full, sample)["top10_overlap"] for sample in samples]
    assert found["stability"]["top10_overlap_mean"] == pytest.approx(np.mean(overlaps), abs=1e-5)
    for (low, high), (first, last), column in zip(found["intervals"], found["rank_intervals"], samples.T, strict=True):
        assert column.min() * 0.99999 <= low <= high <= column.max() * 1.00001
        assert 1 <= first <= last <= modules


def test_equal_resamples_are_perfectly_stable() -> None:
    full = [0.3, 0.1, 0.2]
    found = bootstrap.summarise(full, torch.tensor([full] * 5, dtype=torch.float64))
    assert found["intervals"] == [[x, x] for x in full] and found["rank_intervals"] == [[1, 1], [3, 3], [2, 2]]
    assert found["stability"] == {"spearman_mean": 1, "spearman_p5": 1, "top10_overlap_mean": 3, "resamples": 5}


def test_the_stage_writes_intervals_and_none_where_they_are_off(tmp_path: Path) -> None:
    traces = [spans.char_spans(trace, "paper") for trace in store.load(str(tiny.write_traces(tmp_path / "t.jsonl")))]
    loaded = tiny.build()

    def attribute(resamples: int) -> dict[str, Any]:
        return stage.attribute(loaded, traces, tmp_path / "out", presets=PRESETS, identity="tiny", resamples=resamples)

    made = attribute(60)
    assert artifact.load(tmp_path / "out" / "importance.json") == made and made["resamples"] == 60
    other = artifact.load(tmp_path / "out" / "importance_released.json")
    for entry in (*made["behaviours"].values(), *other["behaviours"].values()):
        assert len(entry["intervals"]) == len(entry["rank_intervals"]) == len(made["modules"])
        assert 0 < entry["stability"]["resamples"] <= 60
    assert attribute(60) == made
    assert attribute(0)["behaviours"]["backtracking"]["intervals"] is None
