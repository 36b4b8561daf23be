from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh

from mixprec.core.errors import UserError
from mixprec.importance.shift import KINDS, Kind, shift
from mixprec.report.cells import CellPanel, cell_map
from mixprec.report.formatting import significant
from mixprec.report.grids import Grids, Measure, importance_grids, layer_ticks, scale_ticks, shift_grids
from mixprec.report.heatmap import still_heatmap
from mixprec.report.style import render, save_figure

Make = Callable[..., dict[str, Any]]


def test_scores_land_in_their_cells(importance: dict[str, Any]) -> None:
    grids = importance_grids(importance)
    assert grids.kinds == ["q", "k", "v", "o", "gate", "up", "down"] and grids.layers == 30
    for panel in grids.panels:
        scores = importance["behaviours"][panel.behaviour]["scores"]
        for module, score in zip(importance["modules"], scores, strict=True):
            cell = grids.kinds.index(module["kind"]), module["layer"] - 1
            assert panel.values[cell] == score and grids.labels[cell] == module["label"]
        assert sorted(panel.ranks.ravel()) == list(range(1, 211))
        assert panel.ranks[np.unravel_index(panel.values.argmax(), panel.values.shape)] == 1


@pytest.mark.parametrize(("layers", "columns"), [(30, 2), (32, 2), (80, 1)])
def test_four_axes_share_one_scale_and_mark_the_top(make_importance: Make, layers: int, columns: int) -> None:
    importance = make_importance(layers)
    figure = still_heatmap(importance_grids(importance))
    panels, bar = figure.axes[:4], figure.axes[4:]
    assert len(bar) == 1 and len({ax.get_position().x0 for ax in panels}) == columns
    meshes = [next(c for c in ax.collections if isinstance(c, QuadMesh)) for ax in panels]
    highest = max(max(entry["scores"]) for entry in importance["behaviours"].values())
    assert {mesh.get_clim() for mesh in meshes} == {(0, highest)}
    assert all(mesh.get_array().shape == (7, layers) for mesh in meshes)
    tops = [next(text.get_text().strip("▾ ") for text in ax.texts if "▾" in text.get_text()) for ax in panels]
    assert tops == [f"{layers}_up", f"{layers}_down", "3_down", f"{layers}_gate"]
    assert panels[0].get_title(loc="left") == "Backtracking"
    assert any(text.get_text() == "40 spans in 20 traces" for text in panels[0].texts)
    assert next(label.get_text() for label in panels[0].get_yticklabels()) == "q"


def test_the_outline_lies_on_the_top_cell(importance: dict[str, Any]) -> None:
    for ax, (layer, row) in zip(
        still_heatmap(importance_grids(importance)).axes, [(30, 5), (30, 6), (3, 6), (30, 4)], strict=False
    ):
        (outline,) = ax.patches
        assert outline.get_xy() == (layer - 0.5, row - 0.5)


def test_files_have_the_same_bytes_every_time(importance: dict[str, Any], tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written.append(save_figure(still_heatmap(importance_grids(importance)), tmp_path / name / "importance"))
    assert [path.name for path in written[0]] == ["importance.png", "importance.svg"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    svg = written[0][1].read_text()
    assert "<dc:date>" not in svg and svg.count("<image") == 1  # cells are vectors, the colour bar is not
    assert written[0][0].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["importance.png", "importance.svg"]


def hover(panel: CellPanel, label: str) -> str:
    """What hovering over a module's cell tells behind its label."""
    (found,) = [cell.tip for cell in panel.cells if cell.tip.startswith(f"{label}\n")]
    return found.removeprefix(f"{label}\n")


def test_hovering_tells_label_score_share_and_rank(importance: dict[str, Any]) -> None:
    drawn = cell_map(importance_grids(importance))
    scores = importance["behaviours"]["backtracking"]["scores"]
    low, high = (significant(factor * max(scores)) for factor in (0.8, 1.3))
    text = hover(drawn.panels[0], "30_up")
    assert text.startswith(f"importance {significant(max(scores))} [{low}, {high}]\n")
    assert f"{100 * max(scores) / sum(scores):.2f}% of all" in text and text.endswith("rank 1 of 210, from 1 to 3")
    assert (drawn.panels[0].top, drawn.panels[0].outlined) == ("30_up", (29, 5))
    for key in ("intervals", "rank_intervals"):
        importance["behaviours"]["backtracking"][key] = None
    text = hover(cell_map(importance_grids(importance)).panels[0], "30_up")
    assert "[" not in text and text.endswith("rank 1 of 210")
    assert drawn == cell_map(importance_grids(importance))._replace(panels=drawn.panels)


def test_colours_grow_along_the_scale(importance: dict[str, Any]) -> None:
    drawn = cell_map(importance_grids(importance))
    bar = [colour for colour, _ in drawn.bar]
    highest = max(max(entry["scores"]) for entry in importance["behaviours"].values())
    for panel, entry in zip(drawn.panels, importance["behaviours"].values(), strict=True):
        for module, score in zip(importance["modules"], entry["scores"], strict=True):
            if score == highest:
                cell = next(each for each in panel.cells if each.tip.startswith(module["label"] + "\n"))
                assert cell.colour == bar[-1]
    assert [at for at, _ in drawn.bar_ticks] == sorted(at for at, _ in drawn.bar_ticks)


def test_a_behaviour_without_spans_stays_empty(importance: dict[str, Any]) -> None:
    importance["behaviours"]["backtracking"] = {"scores": [0.0] * 210, "spans": 0, "traces": 0, "tokens": 0}
    importance["behaviours"]["example_testing"] = {"scores": None, "spans": 0, "traces": 0, "tokens": 0}
    grids = importance_grids(importance)
    assert [panel.top is None for panel in grids.panels] == [True, False, True, False]
    assert grids.panels[0].counts == "no spans"
    assert render(still_heatmap(importance_grids(importance)), "png", dpi=40)
    assert {cell.colour for cell in cell_map(grids).panels[0].cells} == {""}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("behaviours", [0, 1, 3])
def test_any_number_of_behaviours_draws(importance: dict[str, Any], behaviours: int) -> None:
    importance["behaviours"] = dict(list(importance["behaviours"].items())[:behaviours])
    assert render(still_heatmap(importance_grids(importance)), "svg")
    assert len(cell_map(importance_grids(importance)).panels) == behaviours


def test_scores_that_do_not_match_the_modules_are_refused(importance: dict[str, Any]) -> None:
    importance["behaviours"]["backtracking"]["scores"].pop()
    with pytest.raises(UserError, match=r"backtracking\.scores has 209 values for 210 modules"):
        importance_grids(importance)


@given(st.integers(1, 200))
def test_layer_ticks_name_the_first_and_last_and_do_not_crowd(layers: int) -> None:
    ticks = layer_ticks(layers)
    assert ticks[0] == 1 and ticks[-1] == layers and ticks == sorted(set(ticks)) and len(ticks) <= 21
    if layers > 12:
        assert min(b - a for a, b in itertools.pairwise(ticks)) > 2


@given(st.floats(1e-9, 1e6), st.booleans())
def test_scale_ticks_are_inside_the_scale(maximum: float, signed: bool) -> None:
    grids = Grids(Measure("x", signed), [], 0, 0, np.empty((0, 0)), [], maximum)
    ticks = scale_ticks(grids)
    assert ticks == sorted(set(ticks)) and 0 in ticks and maximum / 2 < ticks[-1] <= maximum
    assert ticks[0] == (-ticks[-1] if signed else 0)
    # A label is 35 of the interactive scale's 280 pixels wide.
    places = np.sign(ticks) * np.sqrt(np.abs(ticks) / maximum) / (2 if signed else 1)
    assert len(ticks) >= 3 and np.diff(places).min() > 0.125


def test_modules_without_a_layer_have_a_cell_of_their_own(importance: dict[str, Any]) -> None:
    importance["modules"].append({"address": "lm_head", "label": "head", "layer": 0, "kind": "head"})
    for number, entry in enumerate(importance["behaviours"].values(), 1):
        entry |= {"scores": [*entry["scores"], float(number)], "intervals": None, "rank_intervals": None}
    grids = importance_grids(importance)
    assert grids.kinds[-1] == "head" and grids.panels[2].values[-1, 0] == 3 and grids.panels[2].top == (7, 1, "head")
    assert np.isnan(grids.panels[2].values[-1, 1:]).all() and not np.isnan(grids.panels[2].values[:-1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_is_drawn_with_its_own_signs(make_importance: Make, kind: Kind) -> None:
    made = shift(make_importance(30), make_importance(30, seed=1))
    grids = shift_grids(made, kind)
    drawn, still = cell_map(grids), still_heatmap(grids)
    meshes = [next(c for c in ax.collections if isinstance(c, QuadMesh)) for ax in still.axes[:4]]
    highest = max(max(abs(value) for value in entry[kind]) for entry in made["behaviours"].values())
    lowest = -highest if kind == "net" else 0
    assert {mesh.get_clim() for mesh in meshes} == {(lowest, highest)}
    bar = [colour for colour, _ in drawn.bar]
    for shown, mesh, panel, entry in zip(drawn.panels, meshes, grids.panels, made["behaviours"].values(), strict=True):
        values = np.array(entry[kind]).reshape(30, 7).T * (-1 if kind == "increases" else 1)
        assert np.array_equal(panel.values, values) and np.allclose(mesh.get_array(), values)
        colours = {(cell.row, cell.x): cell.colour for cell in shown.cells}
        if values.max() == highest:
            assert colours[np.unravel_index(values.argmax(), values.shape)] == bar[-1]
        assert panel.top is not None and values[panel.top.row, panel.top.layer - 1] == values.max()


def test_hovering_over_a_shift_tells_shares_and_ranks(make_importance: Make) -> None:
    one, other = make_importance(8), make_importance(8)
    scores = other["behaviours"]["backtracking"]["scores"]
    scores[scores.index(max(scores))] = 0.0
    before = one["behaviours"]["backtracking"]["scores"]
    share = 100 * max(before) / sum(before)
    text = hover(cell_map(shift_grids(shift(one, other), "decreases")).panels[0], "8_up")
    assert text == f"relative importance {share:.2f}% → 0.00%\nlost {significant(share)} points\nrank 1 → 56"


def test_a_behaviour_that_one_side_lacks_stays_empty(make_importance: Make) -> None:
    one, other = make_importance(8), make_importance(8, seed=1)
    other["behaviours"]["backtracking"] = {"scores": [0.0] * 56, "spans": 0, "traces": 0, "tokens": 0}
    grids = shift_grids(shift(one, other), "net")
    (panel,) = [panel for panel in grids.panels if panel.behaviour == "backtracking"]
    assert panel.top is None and np.isnan(panel.values).all() and panel.counts == "no importance in second"
    assert render(still_heatmap(grids), "png", dpi=40)
