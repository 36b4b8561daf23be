from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.errors import UserError
from mixprec.numerics.formats import KEEP, WHOLE_ROW, Format, Keep, parse_format

formats = st.builds(Format, st.integers(2, 8), st.one_of(st.just(WHOLE_ROW), st.integers(1, 5000)), st.booleans())


@given(st.one_of(st.just(KEEP), formats))
def test_text_round_trips(format: Format | Keep) -> None:
    assert parse_format(str(format)) == format


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("w3g64", Format(3, 64)),
        ("w4g128_asym", Format(4, 128, symmetric=False)),
        ("w3", Format(3, WHOLE_ROW)),
        ("w8_asym", Format(8, WHOLE_ROW, symmetric=False)),
        ("keep", KEEP),
    ],
)
def test_text_means(text: str, format: Format | Keep) -> None:
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
    ],
)
def test_bad_text_is_named_with_examples_and_range(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_format(text)
    assert repr(text) in str(caught.value)
    assert "w3g64" in str(caught.value)
    assert "2 to 8 bits" in str(caught.value)


@pytest.mark.parametrize(("bits", "group"), [(1, 64), (9, 64), (3, 0), (3, -2)])
def test_impossible_formats_cannot_be_made(bits: int, group: int) -> None:
    with pytest.raises(ValueError, match="no such format"):
        Format(bits, group)


def test_a_smaller_last_group_counts() -> None:
    assert [Format(3, 64).groups(columns) for columns in (1, 64, 65, 576)] == [1, 1, 2, 9]
    assert Format(3).groups(576) == 1
