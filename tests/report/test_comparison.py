"""Several runs on one page: what is put together, what is left out and why, and the verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import needs_browser, visit
from test_html import Page
from typer.testing import CliRunner

import mixprec as mp
from mixprec import cli
from mixprec.evaluate import metrics
from mixprec.report.comparison import compare
from mixprec.report.html import render_comparison

Change = Callable[[dict[str, Any]], None]
PASSAGES = 8


@pytest.fixture
def write(tmp_path: Path, make_summary: Callable[[], dict[str, Any]]) -> Callable[..., Path]:
    """Write a run's folder; ``change`` its summary first. ``kl``: of every token of variant w3."""

    def write(name: str, change: Change = lambda _: None, kl: float = 1.0) -> Path:
        summary = make_summary()
        summary["evaluation"] |= {"texts": "a" * 64, "rules": 1}
        change(summary)
        folder = tmp_path / name
        for variant in summary["variants"]:
            rows = [{"tokens": 10 + n, "kl_sum": (kl + n / 10) * (10 + n)} for n in range(PASSAGES)]
            where = folder / "variants" / variant / "result.json"
            where.parent.mkdir(parents=True)
            where.write_text(json.dumps({"schema_version": 1, "kl_by_passage": rows}))
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write


def other_texts(summary: dict[str, Any]) -> None:
    summary["evaluation"]["texts"] = "b" * 64


def test_variants_of_all_runs_stand_side_by_side(write: Callable[..., Path]) -> None:
    found = compare([write("gptq"), write("awq", kl=2.0)])
    variants = found.run.summary["variants"]
    assert len(variants) == 12 and {"w3 (gptq)", "w3 (awq)"} <= set(variants)
    assert found.one_model and found.left_out == []
    page = Page(render_comparison(found))
    text = page.all_text()
    assert "2 runs compared: gptq, awq" in text and "w3_last_mlp (awq)" in text and "Size against damage" in text


def test_differences_of_two_runs_are_paired(write: Callable[..., Path]) -> None:
    found = compare([write("gptq"), write("awq", kl=2.0)])
    rows = found.run.passages
    assert rows == {}  # those of the runs are in the runs
    ours, theirs = (found.runs[name].passages["w3"] for name in ("gptq", "awq"))
    expected = metrics.kl_difference(theirs, ours)
    assert found.run.summary["differences"]["w3 (awq)"]["w3 (gptq)"] == expected
    # Every passage differs by 1 nat, though the passages differ from one another: only a paired interval is a point.
    assert expected["kl_difference"] == pytest.approx(1) and expected["ci"] == pytest.approx([1, 1])


def test_what_cannot_be_compared_is_named_and_the_rest_compared(write: Callable[..., Path], tmp_path: Path) -> None:
    old = write("old", lambda summary: summary["evaluation"].pop("texts"))
    rules = write("rules", lambda summary: summary["evaluation"].update(rules=2))
    version = write("version", lambda summary: summary.update(schema_version=99))
    damaged = write("damaged", lambda summary: summary["variants"].update(w3={"kl_mean": "high"}))
    half = tmp_path / "half"
    half.mkdir()
    unmeasured = write("unmeasured", lambda summary: summary.update(evaluation=None))
    texts = write("texts", other_texts)
    good = [write("one"), write("two")]
    found = compare([old, texts, rules, good[0], version, damaged, half, good[1], unmeasured, tmp_path / "none"])
    assert list(found.runs) == ["one", "two"]
    why = dict(found.left_out)
    assert set(why) == {"old", "texts", "rules", "version", "damaged", "half", "unmeasured", "none"}
    assert "run its recipe again" in why["old"] and "other texts" in why["texts"] and "rules 2" in why["rules"]
    assert "schema_version is 99" in why["version"] and "kl_mean" in why["damaged"] and "half" in why["half"]
    assert "no finished run" in why["half"] and "evaluates nothing" in why["unmeasured"]
    text = Page(render_comparison(found)).all_text()
    assert all(name in text for name in why) and "What is not compared" in text


def test_the_most_runs_of_one_kind_are_kept_whichever_comes_first(write: Callable[..., Path]) -> None:
    found = compare([write("odd", other_texts), write("one"), write("two")])
    assert list(found.runs) == ["one", "two"] and [name for name, _ in found.left_out] == ["odd"]


def test_different_models_get_no_verdict(write: Callable[..., Path]) -> None:
    def other(summary: dict[str, Any]) -> None:
        summary |= {"model": "another"}
        summary["provenance"] |= {"model": "c" * 64}

    found = compare([write("one"), write("two", other)])
    text = Page(render_comparison(found)).all_text()
    assert not found.one_model and "of different models" in text and "In short" not in text


def test_too_few_runs_are_the_users_error(write: Callable[..., Path], tmp_path: Path) -> None:
    one = write("one")
    with pytest.raises(mp.UserError, match=r"fewer than two runs can be compared \(only one run was given\)"):
        compare([one, one])
    with pytest.raises(mp.UserError, match=r"fewer than two .*texts: measured on other texts"):
        mp.compare_runs([one, write("texts", other_texts)], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_folders_of_one_name_are_told_apart(write: Callable[..., Path]) -> None:
    found = compare([write("first/run"), write("second/run")])
    assert list(found.runs) == ["first/run", "second/run"]


def test_the_verb_writes_one_page_and_says_what_is_left_out(write: Callable[..., Path], tmp_path: Path) -> None:
    folders = [str(write("one")), str(write("two", kl=2.0)), str(write("texts", other_texts))]
    page = tmp_path / "page.html"
    result = CliRunner().invoke(cli.app, ["report", *folders, "--compare", "--out", str(page)], catch_exceptions=False)
    assert result.exit_code == 0 and page.is_file()
    assert "left out: texts: measured on other texts" in result.stdout and "w3 (two)" in result.stdout
    assert not (tmp_path / "one" / "report.html").exists()
    with pytest.raises(mp.UserError, match="--out: goes with --compare"):
        CliRunner().invoke(cli.app, ["report", folders[0], "--out", str(page)], catch_exceptions=False)


@needs_browser
def test_the_page_works_in_a_browser(write: Callable[..., Path], tmp_path: Path) -> None:
    page = render_comparison(compare([write("one"), write("two", kl=2.0)]))
    points = 'return document.querySelectorAll("#pareto ~ .card svg.chart .t").length'
    assert visit(page, tmp_path, points) == 6


def test_importance_that_moved_from_one_run_to_the_other_is_shown(
    write: Callable[..., Path], make_importance: Callable[..., dict[str, Any]]
) -> None:
    folders = [write("one"), write("two"), write("small")]
    for folder, layers, seed in zip(folders, (8, 8, 4), (0, 1, 0), strict=True):
        (folder / "importance").mkdir()
        (folder / "importance" / "importance.json").write_text(json.dumps(make_importance(layers, seed)))
    found = compare(folders[:2])
    assert found.run.shift is not None and found.run.importance is None and found.left_out == []
    text = Page(render_comparison(found)).all_text()
    assert "Where importance moved" in text and "from one to two" in text
    found = compare([folders[0], folders[2]])
    assert found.run.shift is None and "importance of different modules" in dict(found.left_out)["small, importance"]


def test_benchmarks_are_compared_where_questions_and_rules_are_the_same(write: Callable[..., Path]) -> None:
    def scored(rules: int | None) -> Change:
        def change(summary: dict[str, Any]) -> None:
            summary["benchmarks"] = {"protocol": PROTOCOL} | ({} if rules is None else {"scoring_rules": rules})
            summary["variants"]["w3"]["benchmarks"] = {"folio": ENTRY}

        return change

    found = compare(
        [write("one", scored(3)), write("two", scored(3)), write("other", scored(2)), write("old", scored(None))]
    )
    assert len(found.runs) == 4  # their fidelity can be compared
    why = dict(found.left_out)
    assert set(why) == {"other, benchmarks", "old, benchmarks"} and "not said by which rules" in why["old, benchmarks"]
    shown = {name for name, variant in found.run.summary["variants"].items() if variant.get("benchmarks")}
    assert shown == {"w3 (one)", "w3 (two)"}
    text = Page(render_comparison(found)).all_text()
    assert "Reasoning benchmarks" in text and "differences to" not in text


PROTOCOL = {"seeds": [0], "prompts": "paper", "limit": None, "max_new_tokens": 64, "temperature": 0.6, "top_p": 0.95}
ENTRY: dict[str, Any] = {
    "title": "FOLIO", "rows": "r", "paper_questions": True, "accuracy": {"mean": 0.5, "se": 0.1, "n": 4, "seeds": 1},
    "at_k": {}, "outcomes": {"none": 0}, "compute": {"shares": {"0.3": {"accuracy": {"n": 0} | dict.fromkeys(
        ("short", "long", "ratio", "short_ci", "long_ci"))}}},
    "diagnosis": {"n": 4, "cut": 1, "collapsed": 0, "thinking": {"open": 0}, "gibberish": None, "tokens": None},
}  # fmt: skip
