"""The report in a browser: hovering, keys, tabs, sorting, filtering, the trace viewer, how heavy and how fast it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import needs_browser, seconds_to_draw, visit

from mixprec.report.folder import RunFolder
from mixprec.report.html import render_report

Make = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def page(make_run: Make) -> str:
    return render_report(make_run())


@pytest.fixture(scope="module")
def large(make_run: Make) -> str:
    """The page of a mixture of 80 layers and 128 experts."""
    return render_report(make_run(layers=80, experts=128))


#: Of a page, in JavaScript: the tooltip's text after an event at an element, and the texts of a table's column.
HELPERS = """
  const tip = document.getElementById("tip");
  const over = (mark) => {
    mark.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    return tip.hidden ? null : tip.textContent;
  };
  const press = (at, key) => at.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const section = (id) => document.getElementById(id).closest("section");
  const rows = (table) => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const shown = (table) => rows(table).map((row) => row.cells[0].firstChild.textContent);
"""


@needs_browser
def test_hovering_and_arrow_keys_tell_what_a_mark_is(page: str, tmp_path: Path) -> None:
    script = """
      const chart = section("importance").querySelector("svg.chart"), marks = chart.querySelectorAll(".t");
      const first = over(marks[0]);
      chart.focus();
      chart.dispatchEvent(new Event("blur"));
      const gone = tip.hidden;
      press(chart, "ArrowRight"); const start = tip.textContent;
      press(chart, "ArrowRight"); const right = tip.textContent;
      press(chart, "ArrowDown"); const down = tip.textContent;
      press(chart, "Escape");
      const texts = (svg) => JSON.parse(svg.parentElement.querySelector("script").textContent);
      const charts = [...document.querySelectorAll("svg.chart")];
      const each = charts.map((svg) => [svg.querySelectorAll(".t").length, texts(svg).length]);
      const hidden = tip.hidden, pareto = over(section("pareto").querySelector("svg.chart .peer"));
      const plan = over(section("plan").querySelector("svg.cells .t"));
      return { first, gone, start, right, down, hidden, each, pareto, plan };
    """
    found = visit(page, tmp_path, HELPERS + script)
    assert found["first"].startswith("1_q\nimportance ") and found["gone"] and found["hidden"]
    labels = [found[key].partition("\n")[0] for key in ("start", "right", "down")]
    assert labels == ["1_q", "2_q", "2_k"]
    assert "w3_peer" in found["pareto"] and found["pareto"].endswith("by gptqmodel")
    assert found["plan"].startswith("embedding\n16.00 bits")
    assert len(found["each"]) > 10 and all(marks == texts > 0 for marks, texts in found["each"])


@needs_browser
def test_tabs_show_one_panel_and_follow_the_keys(page: str, tmp_path: Path) -> None:
    script = """
      const group = document.getElementById("plans"), tabs = [...group.querySelectorAll("[role=tab]")];
      const panels = [...group.children].filter((each) => each.dataset.tab);
      const open = () => panels.filter((each) => !each.hidden).map((each) => each.dataset.tab);
      const start = open();
      tabs[1].click(); const clicked = open();
      press(tabs[1], "End"); const last = open();
      press(tabs.at(-1), "ArrowRight"); const round = open();
      const names = tabs.map((tab) => tab.textContent), focused = document.activeElement === tabs[0];
      const chosen = tabs.filter((tab) => tab.getAttribute("aria-selected") === "true" && tab.tabIndex === 0).length;
      return { names, start, clicked, last, round, focused, chosen };
    """
    found = visit(page, tmp_path, HELPERS + script)
    names = found["names"]
    assert len(names) == 6 and found["start"] == found["round"] == [names[0]]
    assert found["clicked"] == [names[1]] and found["last"] == [names[-1]]
    assert found["focused"] and found["chosen"] == 1


@needs_browser
def test_tables_sort_by_what_their_cells_are_worth_and_filter(page: str, tmp_path: Path) -> None:
    script = """
      const table = section("variants").querySelector("table.sortable");
      const heads = [...[...table.tHead.rows].at(-1).cells];
      const by = (title) => heads.find((head) => head.textContent === title);
      const sorted = (title) => {
        by(title).querySelector("button").click();
        return [by(title).getAttribute("aria-sort"), shown(table)];
      };
      const size = sorted("size"), down = sorted("size"), kl = sorted("KL mean");
      const marked = heads.filter((head) => head.hasAttribute("aria-sort")).length;
      const field = section("variants").querySelector(".filter input");
      field.value = "only last"; field.dispatchEvent(new Event("input"));
      const told = section("variants").querySelector(".filter output").textContent;
      return { size, down, kl, marked, filtered: shown(table), told };
    """
    found = visit(page, tmp_path, HELPERS + script)
    assert found["size"][0] == "ascending" and found["size"][1][0] == "w3" and found["size"][1][-1] == "bf16"
    assert found["down"] == ["descending", found["down"][1]] and found["down"][1][0] == "bf16"
    assert found["kl"][1][:3] == ["bf16", "only_last_k", "only_last_up"] and found["marked"] == 1
    assert sorted(found["filtered"]) == ["only_last_k", "only_last_up"] and found["told"] == "2 of 7 rows"


@needs_browser
def test_the_trace_viewer_colours_characters_and_tells_kl(page: str, tmp_path: Path) -> None:
    script = """
      const text = document.getElementById("trace"), pieces = () => [...text.children];
      const those = (name) => pieces().filter((each) => each.dataset.behaviour === name);
      const of = (name) => those(name).map((each) => each.textContent).join("");
      const whole = text.textContent, span = of("backtracking");
      const told = () => document.getElementById("trace-told").textContent, first = told();
      const mark = pieces().find((each) => each.textContent.trim() === "five.");
      const kl = over(mark);
      document.querySelector("#trace-behaviours [data-behaviour=backtracking]").click();
      const without = of("backtracking");
      const variant = document.getElementById("trace-variant");
      variant.value = "w3_last_mlp"; variant.dispatchEvent(new Event("change"));
      const variants = [...variant.options].map((each) => each.value);
      return { whole, span, first, kl, without, second: told(), variants };
    """
    found = visit(page, tmp_path, HELPERS + script)
    assert found["whole"] == "How many 🍐?\nOkay 🙂. Wait, no. I recall five."
    assert found["span"] == "Wait, no." and found["without"] == ""
    assert found["first"] == "9 tokens, mean KL 0.500 nats" and found["second"] == "9 tokens, mean KL 0.250 nats"
    assert found["kl"] == "KL 0.9 nats\nAdding knowledge" and found["variants"] == ["w3", "w3_last_mlp"]


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_clipped_and_a_large_model_stays_light(large: str, width: int, tmp_path: Path) -> None:
    script = """
      const room = document.documentElement.clientWidth;
      const names = [...section("variants").querySelectorAll("table.sortable tbody td:first-child")];
      const beyond = (each) => each.scrollWidth > each.clientWidth + 1 || each.getBoundingClientRect().right > room;
      const table = section("variants").querySelector("table.sortable").scrollWidth;
      const cell = document.querySelector("svg.cells .t[fill]:not([style])").getBoundingClientRect().width;
      const wide = document.documentElement.scrollWidth, display = getComputedStyle(names[0].parentElement).display;
      return { room, wide, clipped: names.filter(beyond).length, table, cell, display };
    """
    found: dict[str, Any] = visit(large, tmp_path, HELPERS + script, width)
    assert found["room"] == width and found["wide"] == width and found["clipped"] == 0 and found["table"] <= width
    assert found["cell"] > 5  # pixels
    assert found["display"] == ("block" if width == 390 else "table-row")
    assert len(large.encode()) < 2_000_000


@needs_browser
def test_a_large_page_is_drawn_within_two_seconds(large: str, tmp_path: Path) -> None:
    assert seconds_to_draw(large, tmp_path) < 2
