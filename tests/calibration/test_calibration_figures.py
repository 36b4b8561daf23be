"""The figures of a calibration set and the warnings that they lead to; and the examples of its page."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixprec.calibration import data
from mixprec.calibration.diagnosis import diagnose, warn
from mixprec.calibration.spec import CalibrationSpec, HubSource, TextSource, TraceSource

PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"
GOOD = {
    "tokens": 16_384,
    "effective_tokens": 16_384.0,
    "distinct_tokens": 3_000,
    "type_token_ratio": 0.18,
    "top10_share": 0.32,
    "looping_samples": 0,
}


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from([0.0, 1.0, 4.0])), min_size=1, max_size=40))
def test_figures_against_counting(pairs: list[tuple[int, float]]) -> None:
    pairs = [*pairs, (3, 1.0)]
    tokens = torch.tensor([[token for token, _ in pairs]])
    weights = torch.tensor([[weight for _, weight in pairs]])
    counts = Counter(token for token, weight in pairs if weight > 0)
    total = sum(counts.values())
    squares = sum(weight**2 for _, weight in pairs)
    found = diagnose(tokens, weights)
    assert found["tokens"] == total
    assert found["effective_tokens"] == pytest.approx(sum(weight for _, weight in pairs) ** 2 / squares, abs=0.06)
    assert found["distinct_tokens"] == len(counts)
    assert found["type_token_ratio"] == pytest.approx(len(counts) / total, abs=1e-4)
    top = sum(count for _, count in counts.most_common(10))
    assert found["top10_share"] == pytest.approx(top / total, abs=1e-4)
    assert diagnose(tokens, None) == diagnose(tokens, torch.full(tokens.shape, 2.0))


def test_a_good_set_has_no_warnings() -> None:
    assert warn(GOOD, 1_536, 576) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 8_192, "effective_tokens": 8_192.0}, "8,192 tokens for inputs of 1,536, 5.3 times as many; GPTQ"),
        ({"tokens": 1_000, "effective_tokens": 1_000.0}, "1,000 tokens for inputs of 1,536: the Hessian is singular"),
        ({"effective_tokens": 1_500.4}, "16,384 tokens, by their weights worth 1,500, for inputs of 1,536: the Hess"),
        ({"distinct_tokens": 500}, "only 500 different tokens for a hidden size of 576"),
        ({"top10_share": 0.6}, "ten tokens make 60% of it"),
        ({"looping_samples": 3}, "3 samples repeat themselves"),
    ],
)
def test_each_doubt_is_told_once(changes: dict[str, Any], message: str) -> None:
    [line] = warn(GOOD | changes, 1_536, 576)
    assert message in line


def test_methods_without_a_hessian_are_not_told_of_one() -> None:
    assert warn(GOOD | {"tokens": 1_000, "effective_tokens": 1_000.0}, None, 576) == []


def test_warnings_of_a_set(load: Any, text: Path) -> None:
    found = load(text=str(text), samples=4, tokens=32)
    assert found.described["figures"] == diagnose(found.tokens, None)
    base = data.warnings(found, 12)
    assert base == warn(found.described["figures"], 12)
    assert len(data.warnings(found, 64)) == len(data.warnings(found, 200)) == len(base) + 1
    assert len(data.warnings(found, 64, 400)) == len(base) + 2


def test_a_short_set_has_a_hessian_that_is_singular() -> None:
    """What the first warning says: fewer tokens than inputs leave directions that the Hessian doesn't see."""
    inputs = torch.randn(40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert int(torch.linalg.matrix_rank(inputs.T @ inputs)) == 40


def test_the_page_has_every_key_and_its_examples_are_valid() -> None:
    text = PAGE.read_text(encoding="utf-8")
    keys = {key for model in (CalibrationSpec, TextSource, TraceSource, HubSource) for key in model.model_fields}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
    explained = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert set(explained) <= keys | set(GOOD)
    assert [key for key in GOOD if f"`{key}`" not in text] == []
    examples = re.findall(r"^```\w*\n(calibration:.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        CalibrationSpec.model_validate(yaml.safe_load(example)["calibration"])
