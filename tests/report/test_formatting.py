from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.report import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.7, "1.70"), (0.00123, "0.00123"), (0.000421, "4.21e-4"), (12.34, "12.3"),
        (123.4, "123"), (9.999, "10.0"), (1234.5, "1,234"), (3e9, "3.00e9"), (-0.0456, "-0.0456"),
        (None, "–"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert formatting.significant(value) == text


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_reads_back_within_half_a_digit(value: float) -> None:
    assert float(formatting.significant(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


def test_sizes_bits_percent_and_counts() -> None:
    assert [formatting.size(n) for n in (None, 999, 53_200_000, 4_912_000_000)] == [
        "–", "999 bytes", "53.2 MB", "4.91 GB"
    ]  # fmt: skip
    assert (formatting.bits(3.25), formatting.percent(0.8731), formatting.integer(12345)) == (
        "3.25", "87.3%", "12,345"
    )  # fmt: skip
    assert (formatting.plural(1, "trace"), formatting.plural(2400, "trace")) == ("1 trace", "2,400 traces")


def test_an_interval_of_no_width_says_nothing() -> None:
    assert formatting.interval([1.6, 1.8]) == "[1.60, 1.80]"
    assert formatting.interval([0, 0]) == formatting.interval(None) == ""


def test_behaviours_are_words_and_formats_are_names() -> None:
    assert formatting.words("adding_knowledge") == "Adding knowledge"
    assert formatting.words("w3g64") == "w3g64"
