"""Tables of checkpoints' layouts."""

from __future__ import annotations

import pytest
from maps import linear

from mixprec.checkpoint.compare import Difference
from mixprec.report.layout import LayoutRow, formats_table, on_disk, worst_table, written_table
from mixprec.report.tables import Table


def written(layer: int, kind: str, format: str, size: int, weights: int = 64, planned: str = "") -> LayoutRow:
    module = linear(layer, kind, weights // 8, 8)
    return LayoutRow(module, "gptq", format, planned, size)


def texts(table: Table) -> list[list[str]]:
    assert all(len(row) == len(table.columns) for row in table.rows)
    return [[cell.text for cell in row] for row in table.rows]


def test_modules_that_lie_alike_share_a_line_with_their_weights_mean() -> None:
    attention = [written(layer, kind, "w3g64", 32) for layer in (1, 2, 3, 5) for kind in ("q", "k", "v", "o")]
    rows = [*attention, written(1, "gate", "w3g64", 48, weights=128), written(4, "down", "f32", 256)]
    assert texts(written_table(rows)) == [
        ["17", "attn gate", "1-3, 5", "gptq", "w3g64", f"{8 * (16 * 32 + 48) / (16 * 64 + 128):.4f}"],
        ["1", "down", "4", "gptq", "f32", "32.0000"],
    ]
    assert on_disk(rows) == pytest.approx(8 * (16 * 32 + 48 + 256) / (17 * 64 + 128))


def test_every_module_and_what_the_plan_says() -> None:
    table = written_table([written(1, "q", "w3", 8, planned="w3"), written(2, "q", "w3", 8)], every=True)
    assert [column.title for column in table.columns] == ["module", "written as", "format", "plan", "bits/weight"]
    assert [row[0] for row in texts(table)] == ["1_q", "2_q"]
    assert len(texts(written_table([written(1, "q", "w3", 8, planned="w3"), written(2, "q", "w3", 8)]))) == 2


def test_two_checkpoints_by_formats_and_by_distance() -> None:
    found = [
        Difference("1_q", 100, "f16", "w3", 16.0, 3.0, 0.25),
        Difference("1_k", 300, "f16", "w3", 16.0, 4.0, 0.5),
        Difference("1_v", 100, "f16", "f32", 16.0, 32.0, 0.0),
    ]
    assert texts(formats_table(found)) == [
        ["2", "f16", "w3", "16.0000", "3.7500", "0.375", "0.500", "0"],
        ["1", "f16", "f32", "16.0000", "32.0000", "0", "0", "1"],
    ]
    assert [row[0] for row in texts(worst_table(found, 10))] == ["1_k", "1_q"]
    assert [row[0] for row in texts(worst_table(found, 1))] == ["1_k"]
