"""The documents against the code: keys, recipes, links, commands, examples, figures."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
import update_annotation
import update_calibration
import update_cli
import update_distillation
import update_pipelines
import update_recipes
import update_reliability
import update_reproduction
import yaml
from pydantic import BaseModel

from mixprec import cli
from mixprec import recipe as recipes
from mixprec.importance.options import AttributionOptions
from mixprec.traces import annotate, spans, store

ROOT = Path(__file__).parents[1]
# Not rglob over the repository: environments and runs have documents of their own.
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.md", "benchmarks/*.md", "mixprec/**/*.md")
    for path in ROOT.glob(pattern)
)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
VERBS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def models_in(kind: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that a type is made of, those within them included."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from models_in(field.annotation)
            # A discriminated union may stand in the metadata only.
            for extra in field.metadata:
                yield from models_in(extra)
    for part in get_args(kind):
        yield from models_in(part)


def prose(text: str) -> str:
    """A page without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[list[str]]:
    """Every command line with ``mixprec`` in bash blocks, inline code and a recipe's first line."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    lines += re.findall(r"`(mixprec [^`]*)`", prose(text).replace("\n", " "))
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["mixprec"]:
                yield words[1:]


def check_command(words: list[str]) -> None:
    """The verb is there, and has the options."""
    if not words or words[0] == "VERB" or words[0].startswith("--"):
        assert not words or words[0] in ("VERB", "--help", "--version")
        return
    assert words[0] in VERBS, f"mixprec has no verb {words[0]}"
    known = {name for parameter in VERBS[words[0]].params for name in parameter.opts} | {"--help"}
    unknown = {word for word in words[1:] if word.startswith("--")} - known
    assert not unknown, f"mixprec {words[0]} has no {unknown}"


def test_figures_of_pipelines_are_those_that_were_measured() -> None:
    assert update_pipelines.PAGE.read_text(encoding="utf-8") == update_pipelines.page(), (
        "run scripts/update_pipelines.py"
    )
    assert update_pipelines.measured({"a": 0.5, "a_ci": [0.25, 0.75]}, "a") == "0.50 [0.25, 0.75]"


def test_the_page_of_verbs_is_that_of_the_command_line() -> None:
    assert update_cli.PAGE.read_text(encoding="utf-8") == update_cli.page(), "run python scripts/update_cli.py"
    assert re.findall(r"^## (.+)$", update_cli.page(), flags=re.MULTILINE) == list(VERBS)


def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    """In mkdocs' strict mode: every page in the navigation, every link and every heading that one names is there."""
    pytest.importorskip("material", reason="pip install 'mixprec[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="quantize.html"' in first and (tmp_path / "site" / "recipes" / "quickstart.yaml").is_file()
    assert not re.search(r'<(script|link)[^>]*(src|href)="https?://', first)  # nothing is asked of other servers


def test_figures_on_pages_are_those_that_were_measured() -> None:
    for script in (update_annotation, update_distillation, update_calibration, update_reliability, update_reproduction):
        assert script.PAGE.read_text(encoding="utf-8") == script.page(), f"run scripts/{script.__name__}.py"


def test_every_key_of_a_recipe_is_explained() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    found = {model.__name__: model for model in models_in(recipes.Recipe)}
    assert {"Recipe", "ModelSpec", "EvaluateSpec", "PlanSpec", "Rule", "RandomMatch", "MostImportant"} <= set(found)
    # In code, alone or behind its section: `method` or `compress.method`.
    missing = [
        f"{name}.{key}"
        for name, model in found.items()
        for key in model.model_fields
        if not re.search(rf"`(\w+\.)?{key}`", text)
    ]
    assert not missing
    known = {key for model in found.values() for key in model.model_fields}
    explained = re.findall(r"^\| `(?:\w+\.)?(\w+)` \|", text, flags=re.MULTILINE)
    assert set(explained) <= known


def test_every_option_of_attribution_is_explained() -> None:
    text = (ROOT / "docs" / "importance.md").read_text(encoding="utf-8")
    assert [key for key in AttributionOptions.model_fields if f"`{key}`" not in text] == []


def test_the_presets_are_those_of_the_table() -> None:
    text = (ROOT / "docs" / "importance.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*(\|.*\|)$", text, flags=re.MULTILINE))
    paper, released = (AttributionOptions.of(preset) for preset in ("paper", "released"))
    different = {key for key, value in paper if value != getattr(released, key)}
    assert rows.keys() == different
    for key, cells in rows.items():
        values = re.findall(r"\| `(\w+)`:", cells)
        assert values == [str(getattr(options, key)).lower() for options in (paper, released)], key


@pages
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8")))
    for target in targets:
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pages
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        check_command(words)


def test_the_flow_names_every_verb() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"`mixprec {verb}" not in text] == []


@pages
def test_examples_in_yaml_are_valid(page: Path) -> None:
    for number, block in enumerate(blocks(page.read_text(encoding="utf-8"), "yaml")):
        data = yaml.safe_load(block)
        if "model" in data:
            recipes.Recipe.model_validate(data)
        else:
            assert set(data) <= set(recipes.Recipe.model_fields), f"{page}: block {number}"
            recipes.Recipe.model_validate({"model": {"id": "a"}} | data)


@pages
def test_no_page_knows_this_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(work|tmp|root|home)/|pypi\.org|pythonhosted|download\.pytorch", text)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_begins_with_its_command(recipe: Path) -> None:
    first = recipe.read_text(encoding="utf-8").splitlines()[0]
    where = recipe.relative_to(ROOT).as_posix()
    assert re.fullmatch(rf"# mixprec run {where}( --data FOLDER)?", first)
    check_command(shlex.split(first.removeprefix("# mixprec ")))
    uses_data = "data:" in re.sub(r"^#.*$", "", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert uses_data == first.endswith("--data FOLDER")


def test_the_catalogue_is_that_of_the_recipes() -> None:
    page = update_recipes.PAGE.read_text(encoding="utf-8")
    assert page == update_recipes.page(), "run python scripts/update_recipes.py"
    assert re.findall(r"\]\(([^)]+\.yaml)\)", page) == [
        path.relative_to(ROOT / "recipes").as_posix() for path in recipes.catalogue().values()
    ]


@pytest.mark.parametrize("name", [name for name in recipes.catalogue() if name.startswith("paper/")])
def test_what_a_row_of_the_paper_takes_is_counted(name: str) -> None:
    chosen = recipes.load(recipes.catalogue()[name])
    assert re.match(r"Table|Figure", chosen.about.paper) and chosen.about.needs and chosen.about.takes
    counted = re.search(r"([\d,]+) outputs", chosen.about.takes)
    if counted and chosen.evaluate:
        outputs = sum(chosen.evaluate.outputs().values()) * len(chosen.all_variants)
        assert int(counted[1].replace(",", "")) == outputs


def test_the_readme_has_its_markers_and_a_small_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = text.index("<!-- quickstart: begin -->"), text.index("<!-- quickstart: end -->")
    assert "| uniform_w3 |" in text[begin:end]
    assert (ROOT / "docs" / "images" / "quickstart_importance.png").stat().st_size < 300_000


@pytest.mark.parametrize("rule", annotate.RULES)
def test_counts_of_spans(rule: annotate.Rule, shared_data: Path) -> None:
    """docs/spans.md, table of the paper's 120 traces: two columns per rule."""
    traces = store.load(str(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"))
    summary = spans.summarise([spans.char_spans(trace, rule) for trace in traces])
    text = (ROOT / "docs" / "spans.md").read_text(encoding="utf-8")
    header = next(line for line in text.splitlines() if line.startswith("| behaviour | `paper` spans"))
    column = header.split(" | ").index(f"`{rule}` spans")
    rows = text[text.index(header) :].splitlines()[2 : 2 + len(spans.ALL_BEHAVIOURS)]
    documented = {row.strip("| ").split(" | ")[0]: row.strip("| ").split(" | ") for row in rows}
    for behaviour in spans.ALL_BEHAVIOURS:
        expected = [str(summary.spans[behaviour]), str(summary.traces_with[behaviour])]
        assert documented[behaviour][column : column + 2] == expected, behaviour
    for reason, count in summary.skipped.items():
        assert f"{reason} {count}" in text
