"""Parsing of annotation text, with the slips that real annotations have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.traces.annotate import LABELS, RULES, Rule, normalise_label, parse

CLEAN = '["initializing"] First. ["end-section"]\n["backtracking"]\nWait.\n["end-section"]'
UNCLOSED = '["deduction"] So x. ["backtracking"] Wait. ["end-section"]'
NESTED = '["example-testing"] Try 2. ["deduction"] It is 4. ["end-section"] Done. ["end-section"]'


def found(annotated: str, rule: Rule) -> list[tuple[str, str]]:
    return [(segment.behaviour, segment.text) for segment in parse(annotated, rule).segments]


@pytest.mark.parametrize("rule", RULES)
def test_clean_annotations_read_the_same_by_every_rule(rule: Rule) -> None:
    parsed = parse(CLEAN, rule)
    assert [segment[:2] for segment in parsed.segments] == [
        ("initializing", "First."),
        ("backtracking", "Wait."),
    ]
    assert not parsed.skipped
    for segment in parsed.segments:
        assert CLEAN.startswith(segment.text, segment.position)


def test_unclosed_section() -> None:
    assert found(UNCLOSED, "released") == [("deduction", 'So x. ["backtracking"] Wait.')]
    assert found(UNCLOSED, "paper") == []
    assert parse(UNCLOSED, "paper").skipped == {"nested": 1}
    assert found(UNCLOSED, "aligned") == [("deduction", "So x."), ("backtracking", "Wait.")]


@pytest.mark.parametrize("rule", ["released", "paper"])
def test_what_the_strict_rules_cannot_read_is_counted(rule: Rule) -> None:
    annotated = f'["musing"] Hm. ["end-section"] {CLEAN} ["2. deduction"] So. ["end-section"] ["deduction"] And so on'
    parsed = parse(annotated, rule)
    assert len(parsed.segments) == 2
    assert parsed.skipped == {"unknown_label": 2, "unclosed": 1}


def test_nested_section() -> None:
    assert parse(NESTED, "paper").skipped == {"nested": 1}
    parsed = parse(NESTED, "aligned")
    assert [segment[:2] for segment in parsed.segments] == [
        ("example_testing", "Try 2."),
        ("deduction", "It is 4."),
    ]
    assert parsed.skipped == {"outside": 1}


def test_last_section_left_open() -> None:
    assert found('["deduction"] So x.', "released") == []
    assert found('["deduction"] So x.', "aligned") == [("deduction", "So x.")]


@pytest.mark.parametrize("rule", RULES)
def test_empty_section_is_counted(rule: Rule) -> None:
    parsed = parse('["deduction"]  ["end-section"]', rule)
    assert (parsed.segments, parsed.skipped) == ([], {"empty": 1})


def test_code_fences_do_not_count_as_text() -> None:
    parsed = parse(f"```plaintext\n{CLEAN}\n```", "aligned")
    assert (len(parsed.segments), parsed.skipped) == (2, {})


def test_slips_in_the_tags() -> None:
    slips = '[“adding-knowledge”] Known. {"end-section"] [ "deduction" ] So. [\'end-section"]'
    assert found(slips, "aligned") == [("adding_knowledge", "Known."), ("deduction", "So.")]


def test_numbers_alone_are_labels_only_where_there_are_no_others() -> None:
    numbers = '[0] Let us see. ["end-section"] [5] Wait. ["end-section"]'
    assert found(numbers, "aligned") == [("initializing", "Let us see."), ("backtracking", "Wait.")]
    assert found('["deduction"] So x in [0] or [1]. ["end-section"]', "aligned") == [
        ("deduction", "So x in [0] or [1].")
    ]


def test_invented_labels_and_refusals_are_counted() -> None:
    parsed = parse('["clarification"] I mean. ["end-section"]', "aligned")
    assert (parsed.segments, parsed.skipped) == ([], {"unknown_label": 1})
    parsed = parse("I'm sorry, I can't label that.", "aligned")
    assert (parsed.segments, parsed.skipped) == ([], {"outside": 1})


@pytest.mark.parametrize(
    ("label", "behaviour"),
    [
        ("backtracking", "backtracking"),
        ("5. backtracking", "backtracking"),
        ("5", "backtracking"),
        ("Example-Testing", "example_testing"),
        ("example_testing", "example_testing"),
        ("uncertainty estimation", "uncertainty_estimation"),
        ("deductions", "deduction"),
        ("exampe-testing", "example_testing"),
        ("self-correction", None),
        ("6", None),
        ("conclusion", None),
        ("", None),
    ],
)
def test_normalise_label(label: str, behaviour: str | None) -> None:
    assert normalise_label(label) == behaviour


@given(st.lists(st.tuples(st.sampled_from(sorted(LABELS)), st.from_regex(r"[a-z][a-z .]{0,20}[a-z.]", fullmatch=True))))
def test_what_is_written_is_read(sections: list[tuple[str, str]]) -> None:
    annotated = "\n\n".join(f'["{label}"] {text} ["end-section"]' for label, text in sections)
    expected = [(LABELS[label], text) for label, text in sections]
    assert all(found(annotated, rule) == expected for rule in RULES)


@given(st.text(alphabet='["end-sctio]{ab1.\n`', max_size=80), st.sampled_from(RULES))
def test_any_text_is_read_without_fault(annotated: str, rule: Rule) -> None:
    parsed = parse(annotated, rule)
    assert all(segment.text for segment in parsed.segments)
    assert all(count > 0 for count in parsed.skipped.values())
