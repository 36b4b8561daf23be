from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.numerics.formats import KEEP, WHOLE_ROW, AnyFormat, CodebookFormat, Format, parse_format

group_sizes = st.one_of(st.just(WHOLE_ROW), st.integers(1, 5000))
formats = st.builds(Format, st.integers(2, 8), group_sizes, st.booleans())
codebook_formats = st.builds(CodebookFormat, st.integers(2, 4), group_sizes)


@given(st.one_of(st.just(KEEP), formats, codebook_formats))
def test_text_round_trips(format: AnyFormat) -> None:
    assert parse_format(str(format)) == format


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("w3g64", Format(3, 64)),
        ("w4g128_asym", Format(4, 128, symmetric=False)),
        ("w3", Format(3, WHOLE_ROW)),
        ("w8_asym", Format(8, WHOLE_ROW, symmetric=False)),
        ("any4g64", CodebookFormat(4, 64)),
        ("any3g128", CodebookFormat(3, 128)),
        ("any4", CodebookFormat(4, WHOLE_ROW)),
        ("keep", KEEP),
    ],
)
def test_text_means(text: str, format: AnyFormat) -> None:
    assert parse_format(text) == format


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w",
        "3g64",
        "w1g64",
        "w9",
        "w03",
        "w3g",
        "w3g0",
        "w3g-1",
        "w3g064",
        "w3g64_sym",
        "W3g64",
        " w3",
        "w33",
        "keep ",
        "any",
        "any1g64",
        "any5g64",
        "any8",
        "any04",
        "any4g0",
        "anyg64",
        "any4g64_asym",
        "Any4",
        "wany4",
    ],
)
def test_bad_text_is_named_with_examples_and_range(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_format(text)
    assert repr(text) in str(caught.value)
    assert "w3g64" in str(caught.value)
    assert "2 to 8 bits" in str(caught.value)
    assert "any4g64 (a learned code book per row), 2 to 4 bits" in str(caught.value)


def test_code_books_need_no_asym() -> None:
    with pytest.raises(UserError, match="leave out _asym"):
        parse_format("any4g64_asym")


@pytest.mark.parametrize(("bits", "group"), [(1, 64), (9, 64), (3, 0), (3, -2)])
def test_impossible_formats_cannot_be_made(bits: int, group: int) -> None:
    with pytest.raises(ValueError, match="no such format"):
        Format(bits, group)


@pytest.mark.parametrize(("bits", "group"), [(1, 64), (5, 64), (4, 0), (4, -2)])
def test_impossible_code_books_cannot_be_made(bits: int, group: int) -> None:
    with pytest.raises(ValueError, match="no such format"):
        CodebookFormat(bits, group)


def test_a_smaller_last_group_counts() -> None:
    assert [Format(3, 64).groups(columns) for columns in (1, 64, 65, 576)] == [1, 1, 2, 9]
    assert Format(3).groups(576) == 1
    assert [CodebookFormat(4, 64).groups(columns) for columns in (1, 64, 65, 576)] == [1, 1, 2, 9]
    assert CodebookFormat(4).groups(576) == 1
