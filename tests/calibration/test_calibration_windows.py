"""Windows, draws and shares against plain loops and the properties that they promise."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from mixprec.calibration.spec import apportion
from mixprec.calibration.windows import LOOP, Stream, Window, counting, cut, looping, shuffled

BOS = 1000


def stream(length: int, *, breaks: tuple[int, ...] | None = None, heads: tuple[int, ...] = ()) -> Stream:
    tokens = torch.arange(length, dtype=torch.int32)
    tokens[[head for head in heads if head < length]] = BOS
    return Stream(tokens, None, breaks or (0, length))


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Pieces of some lengths; some begin with their own head."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    breaks = [0]
    for length in lengths:
        breaks.append(breaks[-1] + length)
    heads = draw(st.sets(st.sampled_from(breaks)))
    return stream(breaks[-1], breaks=tuple(breaks), heads=tuple(heads))


@given(streams(), st.integers(2, 12), st.integers(0, 1))
def test_windows_tile_each_piece(made: Stream, length: int, head: int) -> None:
    windows = cut(made, length, [BOS] * head)
    heads = [at for at, token in enumerate(made.tokens.tolist()) if token == BOS]
    for before, after in pairwise(windows):
        assert before.end <= after.start  # never twice, never overlapping
    for first, last in pairwise(made.breaks):
        inside = [window for window in windows if first <= window.start < last]
        assert all(window.end <= last for window in inside)  # never across a break
        # From the piece's beginning without a gap, and as many as fit.
        ends = [first, *(window.end for window in inside)]
        assert [window.start for window in inside] == ends[:-1]
        assert last - ends[-1] < (length if ends[-1] in heads else length - head)
    for window in windows:
        assert window.end - window.start == (length if window.start in heads else length - head)


def test_windows_of_a_text() -> None:
    assert cut(stream(10), 4, []) == [(0, 4), (4, 8)]
    assert cut(stream(10), 4, [BOS]) == [(0, 3), (3, 6), (6, 9)]
    assert cut(stream(10, heads=(0, 4)), 4, [BOS]) == [(0, 4), (4, 8)]
    assert cut(stream(3), 4, []) == []


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.5, 4.0]), min_size=1, max_size=60), st.integers(1, 9))
def test_windows_that_count(weights: list[float], length: int) -> None:
    made = stream(len(weights))._replace(weights=torch.tensor(weights))
    windows = cut(made, length, [])
    assert counting(made, windows) == [w for w in windows if any(weights[w.start : w.end])]
    assert counting(stream(len(weights)), windows) == windows


@given(st.lists(st.integers(0, 2), max_size=120), st.integers(1, 60))
def test_loops_against_a_plain_loop(tokens: list[int], length: int) -> None:
    made = Stream(torch.tensor(tokens, dtype=torch.int32), None, (0, len(tokens)))
    windows = cut(made, length, [])
    for window, found in zip(windows, looping(made, windows), strict=True):
        inside = tokens[window.start : window.end]
        eights = [tuple(inside[at : at + 8]) for at in range(len(inside) - 7)]
        repeated = sum(eight in eights[:at] for at, eight in enumerate(eights))
        assert found == (bool(eights) and repeated > LOOP * len(eights))


def test_loops_of_few_and_of_large_token_ids() -> None:
    """Eight ids are told apart exactly: a sum of them would not do."""
    generator = torch.Generator().manual_seed(0)
    few = Stream(torch.randint(0, 3, (120,), generator=generator).int(), None, (0, 120))
    assert looping(few, cut(few, 60, [])) == [False, False]
    tokens = torch.randint(0, 250_000, (512,), generator=generator).int()
    assert looping(Stream(tokens, None, (0, 512)), [Window(0, 512)]) == [False]
    assert looping(Stream(tokens[:64].repeat(8), None, (0, 512)), [Window(0, 512)]) == [True]


@given(st.integers(0, 50), st.integers(), st.text(max_size=5))
def test_a_shuffle_loses_nothing(count: int, seed: int, purpose: str) -> None:
    assert sorted(shuffled(count, seed, purpose)) == list(range(count))
    assert shuffled(count, seed, purpose) == shuffled(count, seed, purpose)


def test_a_shuffle_is_the_same_everywhere() -> None:
    state = torch.get_rng_state()
    assert shuffled(8, 0, "a") == [7, 6, 5, 1, 2, 0, 3, 4]
    assert shuffled(8, 1, "a") != shuffled(8, 0, "a") != shuffled(8, 0, "b")
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_are_exact_and_fair(total: int, shares: list[float]) -> None:
    counts = apportion(total, shares)
    assert sum(counts) == total
    exact = [Fraction(str(share)) for share in shares]
    quotas = [total * share / sum(exact) for share in exact]
    for count, quota in zip(counts, quotas, strict=True):
        assert math.floor(quota) <= count <= math.floor(quota) + 1
    # Who was rounded up had at least as large a remainder as who was not.
    remainders = [quota - math.floor(quota) for quota in quotas]
    up = [r for r, c, q in zip(remainders, counts, quotas, strict=True) if c > math.floor(q)]
    down = [r for r, c, q in zip(remainders, counts, quotas, strict=True) if c == math.floor(q)]
    assert not up or not down or min(up) >= max(down)


def test_shares() -> None:
    assert apportion(10, [0.7, 0.3]) == [7, 3]  # as decimals, not as the doubles next to them
    assert apportion(128, [0.5, 0.5]) == [64, 64]
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(3, [5, 0.01]) == [3, 0]
