"""The page for reviewing spans: what is in it, and what it does in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from browser import needs_browser, visit
from test_html import HOSTILE, Page

import mixprec as mp
from mixprec.core import artifacts
from mixprec.report.review import render_review
from mixprec.traces import spans
from mixprec.traces.spans import AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

OUTPUT = "Okay 🙂. Wait, no. I recall five."


def traces(text: str = OUTPUT) -> list[AnnotatedTrace]:
    first = Trace("a", "toy", "How many 🍐?\n", text)
    front = len(first.prompt)
    at = front + text.index("Wait")
    found = [CharSpan("initializing", front, front + 7), CharSpan("backtracking", at, at + 9)]
    return [
        AnnotatedTrace(first, found, {"nested": 1}, {"kind": "judge", "model": "m"}),
        AnnotatedTrace(Trace("b", "", "", "Three.\r\nNo."), [CharSpan("deduction", 0, 6)]),
    ]


def test_the_page_is_whole_and_asks_no_network() -> None:
    kl = [[(0, 3, 0.25), (3, 8, 1.5)], []]
    page = render_review(traces(), "spans.jsonl", kl, "awq")
    for _, attributes in Page(page).elements:
        for key in ("src", "srcset", "href", "data"):
            assert (attributes.get(key) or "data:").startswith("data:")
    assert "default-src 'none'" in page and "http:" not in page and "https" not in page
    assert "2 traces, 3 spans" in page and "KL divergence of awq" in page
    assert page == render_review(traces(), "spans.jsonl", kl, "awq")


def test_hostile_texts_stay_texts() -> None:
    harmless, page = (
        Page(render_review(traces(text), name)) for text, name in ((OUTPUT, "n"), (OUTPUT + HOSTILE, HOSTILE))
    )
    assert page.count("script") == harmless.count("script") and page.count("img") == harmless.count("img")


def rows_after(page: str, keys: str, tmp_path: Path, script: str = "") -> tuple[list[dict[str, Any]], str, str]:
    """Press keys in a real browser, save; gives the saved file's rows, its text, and what the page tells."""
    text, name, told = visit(
        page,
        tmp_path,
        f"""
          const kept = [], make = URL.createObjectURL;
          URL.createObjectURL = (blob) => {{ kept.push(blob); return make(blob); }};
          HTMLAnchorElement.prototype.click = function () {{ kept.push(this.download); }};
          {script}
          for (const key of {json.dumps(keys.split())})
            document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true, cancelable: true }}));
          const told = document.getElementById("told").textContent;
          document.getElementById("save").click();
          return [await kept[0].text(), kept[1], told];
        """,
    )
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    spans.load_spans(tmp_path / name)  # mixprec reads it
    return [json.loads(line) for line in text.splitlines()], name, told


@needs_browser
def test_without_a_change_the_file_stays_as_it_was(tmp_path: Path) -> None:
    spans.save_spans(tmp_path / "spans.jsonl", traces())
    rows, name, _ = rows_after(render_review(traces(), "spans.jsonl"), "j k Escape", tmp_path)
    assert name == "spans.reviewed.jsonl"
    assert rows == artifacts.read_jsonl(tmp_path / "spans.jsonl")
    assert spans.load_spans(tmp_path / name) == spans.load_spans(tmp_path / "spans.jsonl")


@needs_browser
def test_keys_label_delete_and_undo(tmp_path: Path) -> None:
    # The second span becomes adding_knowledge, the first is deleted, undone, and in the second trace all is deleted.
    keys = "j j 4 k x u ] j x"
    rows, _, told = rows_after(render_review(traces(), "spans.jsonl"), keys, tmp_path)
    original = traces()[0]
    assert [span["behaviour"] for span in rows[0]["spans"]] == ["initializing", "adding_knowledge"]
    assert [(span["start"], span["end"]) for span in rows[0]["spans"]] == [(s.start, s.end) for s in original.spans]
    assert rows[0]["annotator"]["kind"] == "review" and rows[0]["annotator"]["of"] == original.by
    assert rows[0]["skipped"] == {"nested": 1}
    assert rows[1]["spans"] == [] and told == "deleted: Deduction"


@needs_browser
def test_the_chosen_spans_menu_gives_a_label(tmp_path: Path) -> None:
    script = """
      document.querySelector("#list li").click();
      const pick = document.querySelector("#list .chosen select");
      pick.value = "deduction"; pick.dispatchEvent(new Event("change", { bubbles: true }));
      document.querySelector("button.label[data-behaviour=backtracking]").click();  // a filter changes nothing
    """
    rows, _, told = rows_after(render_review(traces(), "spans.jsonl"), "", tmp_path, script)
    assert [span["behaviour"] for span in rows[0]["spans"]] == ["deduction", "backtracking"]
    assert told == "now Deduction"


@needs_browser
def test_selected_text_becomes_a_span_counted_in_characters(tmp_path: Path) -> None:
    script = """
      const last = [...document.querySelectorAll("#text span")].at(-1).firstChild, range = document.createRange();
      const at = last.data.indexOf("I recall");
      range.setStart(last, at); range.setEnd(last, at + "I recall five. ".length - 1);
      getSelection().removeAllRanges(); getSelection().addRange(range);
    """
    rows, _, told = rows_after(render_review(traces(), "spans.jsonl"), "4", tmp_path, script)
    text = rows[0]["prompt"] + rows[0]["output"]
    new = rows[0]["spans"][-1]
    assert (new["behaviour"], text[new["start"] : new["end"]]) == ("adding_knowledge", "I recall five.")
    assert told == "new span: Adding knowledge"


def test_kl_of_every_token_at_its_characters(tmp_path: Path) -> None:
    original = tiny.write_checkpoint(tmp_path / "original", steps=20)
    other = tiny.write_checkpoint(tmp_path / "other", steps=10)
    annotated = mp.annotate(tiny.write_traces(tmp_path / "traces.jsonl"))
    mp.review(annotated, tmp_path / "review.html", checkpoint=str(other), reference=str(original))
    page = (tmp_path / "review.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    values = [value for row in data["traces"] for _, _, value in row["kl"]]
    for row in data["traces"]:
        places = [(start, end) for start, end, _ in row["kl"]]
        assert places == sorted(places) and places[-1][1] == len(row["prompt"] + row["output"])
    expected = mp.evaluate(str(other), str(original), traces=annotated)
    assert sum(values) / len(values) == pytest.approx(expected.kl, rel=1e-3)
    with pytest.raises(mp.UserError, match="checkpoint and reference go together"):
        mp.review(annotated, tmp_path / "review.html", checkpoint=str(other))
