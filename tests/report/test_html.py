from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mixprec.core.errors import UserError
from mixprec.report.folder import RunFolder
from mixprec.report.html import flatten, render_report, write_report
from mixprec.report.outputs import Outputs
from mixprec.traces.spans import AnnotatedTrace
from mixprec.traces.store import Trace

RECIPE = "# mixprec run recipes/quickstart.yaml\nmodel: {id: <bundled> & more}\n"
VOID = {"meta", "img", "source", "br", "link", "input", "hr"}
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Every element's attributes, the text by element, and whether elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def all_text(self) -> str:
        pieces = [piece for tag, pieces in self.text.items() if tag not in ("script", "style") for piece in pieces]
        return " ".join(" ".join(pieces).split())


@pytest.fixture(scope="module")
def full(make_run: Callable[..., RunFolder]) -> str:
    return render_report(make_run())


@pytest.fixture
def run(tmp_path: Path, summary: dict[str, Any], make_importance: Callable[..., dict[str, Any]]) -> Path:
    (tmp_path / "importance").mkdir()
    (tmp_path / "importance" / "importance.json").write_text(json.dumps(make_importance(8)))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_a_run_gets_a_page_and_pictures_with_the_same_bytes_every_time(run: Path) -> None:
    page = write_report(run)
    files = [page, *(run / name for name in ("importance.png", "importance.svg", "variants.png"))]
    first = [path.read_bytes() for path in files]
    write_report(run)
    assert page == run / "report.html" and [path.read_bytes() for path in files] == first
    assert not list(run.glob(".*"))


def test_the_page_is_complete_and_self_contained(full: str) -> None:
    page = Page(full)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for key in ("src", "srcset", "href", "data"):
            assert (attributes.get(key) or "#").startswith("#")
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    text = page.all_text()
    for heading in (
        "In short", "Which modules matter for which behaviour", "The most important modules", "Variants",
        "Size against damage", "Where the bits went", "Damage by behaviour", "How to read the numbers",
        "What the models wrote", "Where in a trace the damage is", "How the spans were found", "Where this comes from",
    ):  # fmt: skip
        assert heading in text
    anchors = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert anchors == {f"#{a['id']}" for tag, a in page.elements if tag == "h2"} - {"#verdict"}
    for value in (
        "1.31",
        "[1.24, 1.38]",
        "30_up",
        "text not found in the trace",
        "5.23.0",
        "7 of 10",
        "in 8 passages",
        "past the context",
        "redrawn 1,000 times",
        "0.85 or less in 5%",
        "7.2 of 10",
    ):
        assert value in text
    assert RECIPE in "".join(page.text["code"])
    assert page.count("img") == 0 and page.count("svg") > 10 and len(full) < 2_000_000


def test_styles_load_nothing(full: str) -> None:
    assert not re.search(r"@import|url\(", "".join(Page(full).text["style"]))


def test_hostile_text_stays_text(make_run: Callable[..., RunFolder], make_outputs: Callable[..., Outputs]) -> None:
    run = make_run()
    harmless = Page(render_report(run._replace(layouts={**run.layouts, "plain": run.layouts["w3"]})))
    summary, importance = dict(run.summary), dict(run.importance or {})
    summary["variants"][HOSTILE] = summary["variants"].pop("w3_random") | {"description": HOSTILE}
    summary |= {"title": HOSTILE, "model": HOSTILE, "provenance": {HOSTILE: HOSTILE}}
    for entry in summary["behaviours"].values():
        entry["top_modules"][0]["label"] = HOSTILE
    importance["modules"][-2]["label"] = HOSTILE
    importance["skipped"] = {HOSTILE: 1}
    trace = Trace(HOSTILE, "", "", HOSTILE)
    hostile = run._replace(
        name=HOSTILE,
        summary=summary,
        recipe=HOSTILE,
        importance=importance,
        layouts={**run.layouts, HOSTILE: run.layouts["w3"]},
        outputs={name: make_outputs(HOSTILE, "stop", "wrong") for name in run.outputs},
        held_out=(AnnotatedTrace(trace, []),) * 2,
        token_kl={HOSTILE: {"of": 2, "traces": [{"tokens": [(0, len(HOSTILE), 1.0)], "of": 1}] * 2}},
    )
    page = Page(render_report(hostile))
    scripts = [text for text in page.text["script"] if HOSTILE[:9] in text]
    assert scripts == [] and page.count("img") == 0
    assert page.count("script") == harmless.count("script") and page.count("style") == harmless.count("style")
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert HOSTILE in page.all_text()


def test_without_importance_the_rest_stands(run: Path, summary: dict[str, Any]) -> None:
    for stale in ("importance.png", "importance.svg"):
        (run / stale).write_text("of an earlier run")
    (run / "importance" / "importance.json").unlink()
    (run / "recipe.yaml").unlink()
    (run / "summary.json").write_text(json.dumps(summary | {"behaviours": {}}))
    html = write_report(run).read_text()
    assert len(html) < 200_000 and 'class="chart kinds"' not in html
    assert not (run / "importance.png").exists() and not (run / "importance.svg").exists()
    text = Page(html).all_text()
    assert "Variants" in text and "How the spans were found" not in text and "Recipe" not in text


def test_behaviours_with_too_few_traces_are_named(summary: dict[str, Any], importance: dict[str, Any]) -> None:
    assert "Too few traces" not in Page(render_report(RunFolder("run", summary, importance))).all_text()
    importance["behaviours"]["backtracking"]["stability"] = None
    text = Page(render_report(RunFolder("run", summary, importance))).all_text()
    assert "Too few traces have spans of these to tell: Backtracking." in text


def test_without_resamples_nothing_is_said_of_stability(summary: dict[str, Any], importance: dict[str, Any]) -> None:
    for entry in importance["behaviours"].values():
        entry |= {"intervals": None, "rank_intervals": None, "stability": None}
    text = Page(render_report(RunFolder("run", summary, importance | {"resamples": 0}))).all_text()
    assert "Which modules matter" in text and "How stable" not in text and "resample" not in text


def test_without_evaluation_the_rest_stands(run: Path, summary: dict[str, Any]) -> None:
    sizes = ("description", "code_bits", "effective_bits", "bytes", "bytes_on_disk", "modules_quantized")
    variants = {name: {key: v[key] for key in sizes} for name, v in summary["variants"].items()}
    for variant in variants.values():
        variant |= {"perplexity": None, "kl_mean": None, "kl_mean_ci": None, "text": None, "behaviours": {}}
    (run / "summary.json").write_text(json.dumps(summary | {"variants": variants, "evaluation": {}}))
    text = Page(write_report(run).read_text()).all_text()
    assert "In short" not in text and "Damage by behaviour" not in text and "99.8 MB" in text
    assert not (run / "variants.png").exists()


def test_the_emptiest_summary_renders() -> None:
    page = Page(render_report(RunFolder("run", {"schema_version": 1, "recipe": "bare", "model": "m"})))
    assert "bare" in page.all_text()


def test_a_missing_or_foreign_summary_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema_version is 99"):
        write_report(tmp_path)


def test_provenance_flattens_to_dotted_keys() -> None:
    tree = {"git_revision": None, "packages": {"torch": "2.13.0"}, "seeds": [0, 1], "n": 3, "on": True}
    assert flatten(tree) == {"packages.torch": "2.13.0", "seeds": "[0, 1]", "n": "3", "on": "true"}


def test_likelihoods_say_what_they_are_and_which_are_within_chance(summary: dict[str, Any]) -> None:
    score = {"mean": 0.4, "se": 0.1, "ci": [0.2, 0.6], "n": 20, "seeds": 1}
    closed = {"accuracy": score, "share": score, "chance": 0.33, "majority": 0.4, "within_chance": True}
    entry = {"title": "FOLIO", "rows": "r", "gold_nll": score | {"mean": 1.25}, **closed}
    summary["variants"]["w3"]["likelihood"] = {"folio": entry}
    text = Page(render_report(RunFolder("run", summary))).all_text()
    assert "Likelihood of answers" in text and "not the paper's protocol" in text
    assert "FOLIO: the accuracy of w3 is within chance (33.0% by guessing" in text and "1.25" in text
