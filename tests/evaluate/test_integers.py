"""Integers (AIME): arithmetic that is left standing, and math-verify as a second reader of the same endings."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from test_scoring import THOUGHT, ask

from mixprec.evaluate.scoring import arithmetic, score

#: Boxes that math-verify 0.9.0 reads as we do.
ALIKE = [
    (r"007", "7"),
    (r"2^3", "8"),
    (r"2^{10}", "1024"),
    (r"10^{2}+13", "113"),
    (r"\frac{144}{2}", "72"),
    (r"\dfrac{144}{2}", "72"),
    (r"\tfrac{144}{2}", "72"),
    (r"144/2", "72"),
    (r"\sqrt{5184}", "72"),
    (r"6\sqrt{144}", "72"),
    (r"72\sqrt{1}", "72"),
    (r"\binom{9}{2}", "36"),
    (r"{9 \choose 2}", "36"),
    (r"8 \cdot 9", "72"),
    (r"9\cdot8", "72"),
    (r"8\times 9", "72"),
    (r"9*8", "72"),
    (r"2^{3}\cdot 3^{2}", "72"),
    (r"3!", "6"),
    (r"72!/71!", "72"),
    (r"\frac{9!}{7!}", "72"),
    (r"70+2", "72"),
    (r"100-28", "72"),
    (r"73-1", "72"),
    (r"8+64", "72"),
    (r"\frac{1}{2}\cdot 144", "72"),
    (r"0.5\cdot144", "72"),
    (r"7.2 \times 10^1", "72"),
    (r"72.0", "72"),
    (r"(72)", "72"),
    (r"\left(72\right)", "72"),
    (r"+72", "72"),
    (r"-72", "-72"),
    (r"−72", "-72"),
    (r"-\frac{-144}{2}", "72"),
    (r"|{-72}|", "72"),
    (r"\lfloor 72.9 \rfloor", "72"),
    (r"\left\lfloor \frac{145}{2} \right\rfloor", "72"),
    (r"\lceil 71.2 \rceil", "72"),
    (r"\gcd(144,216)", "72"),
    (r"72_{10}", "72"),
    (r"72^\circ", "72"),
    (r"72 \text{ units}", "72"),
    (r"72\,\mathrm{cm}", "72"),
    (r"1{,}024", "1024"),
    (r"12,345", "12345"),
    (r"\$72", "72"),
    (r"72\%", "72"),
    (r"\approx 72", "72"),
    (r"x=72", "72"),
    (r"m+n = 72", "72"),
    (r"N = 8\cdot 9", "72"),
    (r"p+q+r=8+7+57=72", "72"),
    (r"\dfrac{72}{1}", "72"),
]
#: Boxes of which math-verify makes something else; why ours is the reading of a person.
OURS = [
    (r"\text{072}", "72", "a number, not a word"),
    (r"1 024", "1024", "a blank between thousands, not a sum"),
    (r"1\,024", "1024", "a thin space between thousands"),
    (r"1072 \bmod 1000", "72", "the remainder, not the modulus"),
    (r"72.", "72", "a full stop"),
    (r"25,", "25", "a comma"),
    (r"72\degree", "72", "a unit"),
    (r"72^\text{th}", "72", "an ordinal"),
    (r"72~\text{ways}", "72", "a space"),
    (r"\text{72 minutes}", "72", "a unit inside the text"),
    (r"\text{Answer: }72", "72", "words in front"),
    (r"\text{(B) }72", "72", "an option's letter"),
    (r"\textcolor{red}{72}", "72", "a colour"),
    (r"\underline{72}", "72", "a line below"),
    (r"72 \pmod{1000}", "72", "what is congruent, not all that are"),
]
#: What is no integer, or several, is read as it stands: no number in it is the answer.
NEITHER = [
    r"\sqrt{72}",
    r"6\sqrt{2}",
    r"72\pi",
    r"72x",
    r"n=72k",
    r"72.5",
    r"\frac{8}{17}",
    r"\log_2 72",
    r"\pm 72",
    r"(7,2)",
    r"72, 73",
    r"72 \text{ or } 73",
    r"m=8, n=72",
    r"x = 71 \text{ or } x = 72",
    r"\text{no solution}",
    r"\infty",
    r"999!",
    r"9^{9^{9^{9}}}",
    r"2^{1000000007}",
    r"72/0",
]
#: math-verify doesn't bound what it computes of these.
UNBOUNDED = ("999!", "^{9", "1000000007", "/0")
PHRASES = [
    ("The answer is $2^3 \\cdot 9$.", "72"),
    ("Answer: $\\sqrt{5184}$", "72"),
    ("**Answer:** 9*8", "72"),
    ("The answer is \\(8 \\cdot 9\\).", "72"),
    ("Final answer: 4! \\cdot 3", "72"),
    ("So the sum $m + n$ = 8+17, which equals 25.", "25"),
    ("Therefore $m+n = 8+17$, which equals $25$.", "25"),
    ("The walk takes 204 minutes, including 24 minutes in the coffee shop.", "204"),
    ("So, she needs 204 minutes, of which 24 are spent in the shop.", "204"),
    ("The answer is $6\\sqrt{3}$.", "6\\sqrt{3}"),
    ("**Answer:** 72 or 73", "72 or 73"),
    ("The answer is 3 or 4 times 18, so 72.", "72"),
    ("Thus the probability is $\\frac{1}{72}$, and $m+n=1+72=73$.", "73"),
    ("The answer is 33!", "33"),
    ("\\fbox{72}", "72"),
    ("\\boxed{72}\\%", "72"),
    ("\\boxed{\\boxed{72}}.", "72"),
    ("\\boxed{71} and, after mending, \\boxed{72}", "72"),
]


@pytest.mark.parametrize(("box", "expected"), [*ALIKE, *(row[:2] for row in OURS)])
def test_boxes(box: str, expected: str) -> None:
    assert score(ask("integer", expected), f"{THOUGHT}\\boxed{{{box}}}").answer == expected


@pytest.mark.parametrize("box", NEITHER)
def test_what_is_no_integer(box: str) -> None:
    verdict = score(ask("integer", "72"), f"{THOUGHT}\\boxed{{{box}}}")
    assert verdict.outcome == "wrong"
    assert not (verdict.answer or "").isdigit()


@pytest.mark.parametrize(("text", "expected"), PHRASES)
def test_phrases(text: str, expected: str) -> None:
    assert score(ask("integer", expected), THOUGHT + text).answer == expected


def math_verify_takes(box: str, answer: str) -> bool:
    """Whether math-verify takes a box for an answer."""
    math_verify = pytest.importorskip("math_verify", reason="math-verify, of the extra 'dev', is not installed")
    gold, found = (math_verify.parse(f"$\\boxed{{{each}}}$", parsing_timeout=None) for each in (answer, box))
    return bool(math_verify.verify(gold, found, timeout_seconds=None))


@pytest.mark.parametrize(("box", "expected"), ALIKE)
def test_math_verify_agrees(box: str, expected: str) -> None:
    assert math_verify_takes(box, expected)


@pytest.mark.parametrize(("box", "expected", "why"), OURS)
def test_math_verify_reads_something_else(box: str, expected: str, why: str) -> None:
    """Where both disagree, the row says why ours stays. A row that math-verify reads as we do belongs above."""
    assert not math_verify_takes(box, expected), why


@pytest.mark.parametrize("box", [each for each in NEITHER if not any(part in each for part in UNBOUNDED)])
def test_math_verify_finds_no_integer_either(box: str) -> None:
    assert not math_verify_takes(box, "72")


def test_arithmetic_is_exact() -> None:
    """Random expressions, written in LaTeX, have the value that Python's fractions give them."""
    draw = random.Random(0)

    def made(depth: int) -> tuple[str, Fraction]:
        if not depth:
            number = draw.randrange(1, 30)
            return str(number), Fraction(number)
        (one, a), (other, b) = made(depth - 1), made(depth - 1)
        sign = draw.choice(["+", "-", r"\cdot", r"\times", r"\frac"])
        if sign == r"\frac":
            return (rf"\frac{{{one}}}{{{other}}}", a / b) if b else made(0)
        return f"({one} {sign} {other})", a + b if sign == "+" else a - b if sign == "-" else a * b

    for _ in range(300):
        text, expected = made(draw.randrange(4))
        assert arithmetic.value(text) == (expected if len(text) <= 200 else None), text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        "2^",
        "1/0",
        "0^{-1}",
        "7 2",
        r"\frac12",
        r"\sqrt{-4}",
        r"\binom{2}{9}",
        "((((" * 40,
        "1+" * 90,
        r"\foo{2}",
    ],
)
def test_what_is_no_arithmetic_has_no_value(text: str) -> None:
    assert arithmetic.value(text) is None
