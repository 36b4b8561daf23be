from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mixprec.importance.shift import Kind, find_places, shift
from mixprec.report.rankings import agreement_table, between_table, movers_table, places_table
from mixprec.report.tables import Cell

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def made(make_importance: Make) -> dict[str, Any]:
    return shift(make_importance(6), make_importance(6, seed=1), ("original.json", "awq.json"))


@pytest.mark.parametrize(("kind", "sign"), [("decreases", 1), ("net", 1), ("increases", -1)])
def test_movers_come_in_order_and_all_moved_that_way(made: dict[str, Any], kind: Kind, sign: int) -> None:
    table = movers_table(made, kind)
    labels = [module["label"] for module in made["modules"]]
    assert len(table.rows) == 10 and [column.title for column in table.columns][:2] == ["", "Backtracking"]
    for column, entry in enumerate(made["behaviours"].values(), 1):
        shown = [sign * entry["net"][labels.index(row[column].text)] for row in table.rows]
        assert shown == sorted((sign * net for net in entry["net"]), reverse=True)[:10] and min(shown) > 0
    before, after = made["behaviours"]["backtracking"]["relative"]
    where = labels.index(table.rows[0][1].text)
    assert table.rows[0][1].note == f"{100 * before[where]:.2f}→{100 * after[where]:.2f}%"


def test_where_nothing_moved_there_are_no_movers(make_importance: Make) -> None:
    assert movers_table(shift(make_importance(3), make_importance(3)), "decreases").rows == []


def test_agreement_of_models_and_of_behaviours(made: dict[str, Any]) -> None:
    rows = agreement_table(made).rows
    assert [row[0].text for row in rows] == [
        "Backtracking", "Uncertainty estimation", "Example testing", "Adding knowledge"
    ]  # fmt: skip
    assert rows[0][1].text == f"{100 * made['behaviours']['backtracking']['moved']:.1f}%"
    table = between_table(made)
    assert table.groups == [("", 1), ("first", 2), ("second", 2)] and len(table.rows) == 6
    assert table.rows[0][0].text == "Backtracking, uncertainty estimation"
    assert table.rows[0][2].text == f"{made['between']['first'][0]['top10_overlap']} of 10"
    made["between"]["second"] = made["between"]["second"][1:]
    assert between_table(made).rows[0][3:] == [Cell("–"), Cell("–")]


def test_ranks_read_as_in_the_paper(make_importance: Make) -> None:
    table = places_table(find_places(make_importance(30), ["last_up", "1_k"]))
    assert [row[0].text for row in table.rows] == ["30_up", "1_k"]
    words = [[cell.text.split()[1] for cell in row[3:]] for row in table.rows]
    assert words == [["overall", "col", "row"]] * 2
