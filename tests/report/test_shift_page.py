from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_html import HOSTILE, Page
from typer.testing import CliRunner

from mixprec import cli
from mixprec.core.errors import UserError
from mixprec.importance.shift import KINDS, Kind, shift
from mixprec.report.shift import render_shift, write_shift

Make = Callable[..., dict[str, Any]]


def test_files_are_written_with_the_same_bytes_every_time(make_importance: Make, tmp_path: Path) -> None:
    made = shift(make_importance(4), make_importance(4, seed=1))
    written = [write_shift(made, "decreases", tmp_path / name) for name in ("one", "two")]
    assert [path.name for path in written[0]] == ["shift.json", "shift.html", "shift.png", "shift.svg"]
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]
    assert json.loads(written[0][0].read_text()) == made


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_complete_and_self_contained(make_importance: Make, kind: Kind) -> None:
    one, other = make_importance(4), make_importance(4, seed=1) | {"preset": "released"}
    del other["behaviours"]["example_testing"]
    text = render_shift(shift(one, other, ("original.json", "awq.json")), kind)
    page = Page(text)
    for _, attributes in page.elements:
        for key in ("src", "srcset", "href", "data"):
            assert (attributes.get(key) or "data:").startswith("data:")
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    shown = page.all_text()
    for value in ("original.json → awq.json", "The presets differ: paper and released", "no importance in awq.json"):
        assert value in shown
    assert ("gained most" in shown) == (kind == "increases") and ("orange" in shown) == (kind == "net")
    assert page.count("table") == 3 and text.count('<svg class="chart kinds"') == 4


def test_hostile_names_stay_text(make_importance: Make) -> None:
    made = shift(make_importance(4), make_importance(4, seed=1))
    harmless = Page(render_shift(made, "decreases"))
    made["modules"][-2]["label"] = made["first"]["name"] = HOSTILE
    page = Page(render_shift(made, "decreases"))
    assert page.count("script") == harmless.count("script") and page.count("img") == harmless.count("img")
    assert HOSTILE in page.all_text()


def write(folder: Path, name: str, importance: dict[str, Any]) -> str:
    (folder / name).write_text(json.dumps(importance))
    return str(folder / name)


def test_the_verbs_print_who_lost_and_who_ranks_where(make_importance: Make, tmp_path: Path) -> None:
    first = write(tmp_path, "first.json", make_importance(4))
    second = write(tmp_path, "second.json", make_importance(4, seed=1))
    arguments = ["shift", first, second, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, [*arguments, "--kind", "net"], catch_exceptions=False)
    assert result.exit_code == 0 and "Modules that lost most" in result.stdout and "Spearman" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "shift.html", "shift.json", "shift.png", "shift.svg"
    ]  # fmt: skip
    result = CliRunner().invoke(cli.app, ["rank", first, "last_up", "1_k"], catch_exceptions=False)
    assert result.exit_code == 0 and "4_up" in result.stdout and "1_k" in result.stdout and "2_k" not in result.stdout
    with pytest.raises(UserError, match="'sum' is none of decreases, increases, net"):
        CliRunner().invoke(cli.app, [*arguments, "--kind", "sum"], catch_exceptions=False)
    with pytest.raises(UserError, match=r"plan\.json: schema_version is None"):
        CliRunner().invoke(cli.app, ["rank", write(tmp_path, "plan.json", {})], catch_exceptions=False)
