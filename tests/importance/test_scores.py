"""Scores end to end against plain loops over the paper's formulas and over the released algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference import layout_of, naive_importance, tiny_model

from mixprec.core import artifacts
from mixprec.importance import scores, statistics
from mixprec.importance.engine import Job, Layout, run_trace
from mixprec.importance.options import PRESETS, AttributionOptions
from mixprec.importance.windows import Work, plan_work
from mixprec.traces.spans import TokenSpan

BEHAVIOURS = ("a", "b", "c", "d")


def traces() -> list[tuple[torch.Tensor, list[TokenSpan]]]:
    """Three traces: overlapping spans, one that wraps in the released code, a trace without spans of one behaviour."""
    generator = torch.Generator().manual_seed(3)
    spans = [
        [TokenSpan("a", 2, 7), TokenSpan("b", 9, 15), TokenSpan("a", 12, 20), TokenSpan("c", 21, 25)],
        [TokenSpan("b", 8, 11), TokenSpan("c", 13, 19), TokenSpan("d", 20, 28)],
        [TokenSpan("d", 10, 13), TokenSpan("a", 14, 17)],
    ]
    return [
        (torch.randint(3, 61, (length,), generator=generator), found)
        for length, found in zip((28, 30, 20), spans, strict=True)
    ]


def run(model: torch.nn.Module, layout: Layout, folder: Path) -> list[Path]:
    options: dict[str, AttributionOptions] = {preset: AttributionOptions.of(preset) for preset in PRESETS}
    paths = list(statistics.paths(folder, 3))
    for path, (tokens, spans) in zip(paths, traces(), strict=True):
        works = {name: plan_work(spans, BEHAVIOURS, len(tokens), option) for name, option in options.items()}
        rows = torch.cat([torch.ones(1, len(tokens)), *(work.rows for work in works.values())])
        windows = [window for work in works.values() for window in work.windows]
        with statistics.writing(path, layout.slices, works, options, torch.float64, "stamp") as file:
            file.finish(run_trace(model, layout, Job(tokens, rows, windows), file, batch_tokens=16))
    return paths


def write(
    path: Path, model: Any, layout: Layout, tokens: torch.Tensor, work: Work, option: AttributionOptions, **sizes: int
) -> None:
    """One trace's statistics under the name p."""
    rows = torch.cat([torch.ones(1, len(tokens)), work.rows])
    with statistics.writing(path, layout.slices, {"p": work}, {"p": option}, torch.float64, "stamp") as file:
        file.finish(run_trace(model, layout, Job(tokens, rows, work.windows), file, **sizes))


@pytest.mark.parametrize("preset", PRESETS)
def test_importance_is_that_of_plain_loops(preset: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    layout = layout_of(model)
    options = AttributionOptions.of(preset)  # type: ignore[arg-type]
    found, _ = scores.score(run(model, layout, tmp_path), preset, layout.slices, options)
    expected = naive_importance(model, layout, traces(), BEHAVIOURS, preset)
    for row, behaviour in enumerate(BEHAVIOURS):
        reference = torch.tensor([expected[behaviour][name] for name in layout.modules], dtype=torch.float64)
        error = (found.importance[row] - reference).abs() / reference.max()
        assert error.max() < 1e-9


def test_token_sum_is_the_mean_times_the_length(tmp_path: Path) -> None:
    model = tiny_model("llama")
    layout = layout_of(model)
    tokens, spans = traces()[1]
    found = {}
    for kind in ("mean", "sum"):
        option = AttributionOptions(tokens=kind, absolute="inside")  # type: ignore[arg-type]
        work = plan_work(spans, BEHAVIOURS, len(tokens), option)
        path = tmp_path / f"{kind}.safetensors"
        write(path, model, layout, tokens, work, option)
        found[kind] = statistics.load(path, "p").presets["p"].gradients
    lengths = torch.tensor([w.end - w.start for w in work.windows], dtype=torch.float64)
    assert torch.allclose(found["sum"], found["mean"] * lengths[:, None], rtol=1e-12)


def test_a_behaviour_without_spans_scores_zero_not_nan(tmp_path: Path) -> None:
    model = tiny_model("llama")
    layout = layout_of(model)
    option = AttributionOptions.of("paper")
    tokens = traces()[0][0]
    work = plan_work([TokenSpan("a", 8, 12)], BEHAVIOURS, len(tokens), option)
    path = tmp_path / "00000.safetensors"
    write(path, model, layout, tokens, work, option)
    found, means = scores.score([path], "p", layout.slices, option)
    assert found.importance[0].min() > 0
    assert not found.importance[1:].any()
    assert means.traces_with.tolist() == [1, 0, 0, 0]


def test_statistics_are_redone_only_with_another_stamp(tmp_path: Path) -> None:
    model = tiny_model("llama")
    paths = run(model, layout_of(model), tmp_path)
    assert artifacts.is_made(paths[0], "stamp")
    assert not artifacts.is_made(paths[0], "another")
    assert not artifacts.is_made(tmp_path / "none", "stamp")
