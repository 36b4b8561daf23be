"""No measured figure in the documents is typed by hand.

A figure is taken for measured where it has two decimals or more, is a percentage, a KL or a CPU time. It has to stand
in a block that a script writes, in code, or in front of a comment that names where it was measured
(scripts/update_figures.py). All else has to be a fact: on a line that cites where it comes from, or in ``FACTS``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import update_annotation
import update_figures

ROOT = Path(__file__).parents[1]
#: Written by scripts as a whole: benchmarks/results.py, update_cli.py, update_api.py.
WRITTEN = {"cli.md", "api.md"}
PAGES = [page for page in update_figures.pages() if page.name not in WRITTEN]

_BLOCK = re.compile(r"<!-- ([\w-]+): begin -->.*?<!-- \1: end -->", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_MEASURED = re.compile(
    r"(?<![\w.§])[-−]?\d+\.\d{2,}(?![.\w])|\d(?:\.\d+)? ?%|\b[\d.,]+ CPU (?:s|seconds|min|minutes|hours?)\b"
    r"|\bCPU (?:s|seconds|min|minutes) of [\d.]+|\bKL (?:of |is )?\d+\.\d"
)
#: Numbers that name something: papers, versions of packages, the level of all intervals.
_NAMES = re.compile(
    r"\b95%|arXiv[: ]\d{4}\.\d{5}|(?:arxiv\.org/abs/)?\d{4}\.\d{5}|\b\d+(?:\.\d+){2,}\b"
    r"|\b(?:Python|version|versions before|torch|wants|than|lm-eval|mlx|accelerate|library) \(?\d+\.\d+\)?"
)
#: What a line says that tells where its figures come from: the paper, a formula, a definition of an interval.
_SOURCE = re.compile(
    r"the paper's|The paper's|R1-Distill-Llama-8B|appendix [A-Z]|Appendix [A-Z]|5% quantile| = ",
)
#: Page -> parts of lines whose figures are facts: defaults, limits, bits of formats, what a table of versions says.
FACTS: dict[str, tuple[str, ...]] = {
    "README.md": ("gives 3-bit AWQ 6.57 points back", "Python 3.11"),
    "docs/checkpoints.md": (
        "by at most 0.002 of itself in bfloat16",  # half a step of the format
        "4.25 effective bits in a plan",
    ),
    "docs/compression.md": ("| `damping`", "first step of scales"),
    "docs/evaluation.md": ("top-p 0.95", "0 to 11.6% for none of 30", "longest 30% and 20%",
                           "has a fixed period"),
    "docs/formats.md": ("effective bits, `", "groups divide the rows, and"),
    "docs/gguf.md": ("| 256 |", "| 32 |", "and wider", "2.51, 1.73 and 1.58 bits"),
    "docs/peers.md": ("| llmcompressor |", "| gptqmodel |", "| autoround |", "| modelopt |", "| mlx |", "| llamacpp |",
                      "damping, of the mean diagonal", "damping 0.01", "torch is 2.13.0"),
    "docs/quantize.md": ("0.125 bits a weight more", "3.890625 bits at least"),
    "docs/recipes.md": ("0.6, 0.95", "compress.tune_blocks"),
    "docs/security.md": ("within two CPU seconds",),
    "docs/spans.md": ("90% of the section", "less than 90%", "at least 60%", "less than 30%", "more than 20%",
                      "more than 10%"),
    "docs/tuning.md": ("0.002, 0.001",),
    "docs/allocation.md": ("w3g64 has 3.25", "| 3.25 |"),
}  # fmt: skip


def typed(text: str) -> list[tuple[int, str]]:
    """Line numbers and figures that look measured and stand in no block, code or comment."""
    for part in (_BLOCK, _FENCE):
        text = part.sub(lambda match: "\n" * match[0].count("\n"), text)
    text = update_figures.FIGURE.sub("", text)
    text = re.sub(r"`[^`\n]*`|\]\([^)\n]*\)", lambda match: " " * len(match[0]), text)
    return [
        (number, match[0])
        for number, line in enumerate(text.splitlines(), 1)
        for match in _MEASURED.finditer(_NAMES.sub("", line))
    ]


def untold(page: Path, text: str) -> list[str]:
    """The measured figures of a page of which nothing says where they come from."""
    lines, facts = text.splitlines(), FACTS.get(page.relative_to(ROOT).as_posix(), ())
    return [
        f"{page.name}:{number}: {figure} in {lines[number - 1].strip()[:100]!r}"
        for number, figure in typed(text)
        if not _SOURCE.search(lines[number - 1]) and not any(fact in lines[number - 1] for fact in facts)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_measured_figure_is_typed(page: Path) -> None:
    found = untold(page, page.read_text(encoding="utf-8"))
    assert not found, (
        "\n".join(found)
        + "\nput it into a block that a script writes, name its source as scripts/update_figures.py says, "
        "or add it to FACTS where it is no measurement"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_figures_are_those_that_were_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert update_figures.filled(text) == text, "run python scripts/update_figures.py"


def test_how_far_annotators_get_is_what_was_measured() -> None:
    script = update_annotation
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/update_annotation.py"


@pytest.mark.parametrize(
    "line",
    ["its KL is 0.436", "it takes back 51% of it", "KL 1.7 at 3 bits", "| ours | 0.75 |", "in 20 CPU seconds", "−0.13"],
)
def test_a_typed_figure_is_found(line: str) -> None:
    assert untold(ROOT / "docs" / "plan.md", f"# A page\n\n{line}\n")


@pytest.mark.parametrize(
    "text",
    [
        "its KL is 0.436<!--allocation:kl.ours@3.25-->",
        "as in [arXiv:2504.02010](https://arxiv.org/abs/2504.02010), version 1.2.3",
        "`--rate 0.002`",
        "```bash\nmixprec x --rate 0.002\n```",
        "<!-- x: begin -->\nKL 0.25\n<!-- x: end -->",
        "the paper's protection brings 6.57 points",
    ],
)
def test_what_is_generated_named_or_cited_passes(text: str) -> None:
    assert not untold(ROOT / "docs" / "plan.md", f"# A page\n\n{text}\n")


def test_figures_keep_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"kl": 0.43612, "gain": -0.13, "share": 0.514, "ci": [0.1, 1234.56], "null": None, "a.b": {"c": 3.0}}
    monkeypatch.setattr(update_figures, "_results", lambda file: measured)
    for before, after in (
        ("0.1<!--x:kl-->", "0.4<!--x:kl-->"),
        ("KL 9.999<!--x:kl-->.", "KL 0.436<!--x:kl-->."),
        ("+0.50<!--x:gain-->", "−0.13<!--x:gain-->"),
        ("7%<!--x:share-->", "51%<!--x:share-->"),
        ("[0.0, 1,000]<!--x:ci-->", "[0.1, 1,235]<!--x:ci-->"),
        ("1<!--x:a.b.c-->", "3<!--x:a.b.c-->"),
    ):
        assert update_figures.filled(before) == after
    for wrong in ("1<!--x:none-->", "1<!--x:null-->"):
        with pytest.raises(SystemExit):
            update_figures.filled(wrong)
