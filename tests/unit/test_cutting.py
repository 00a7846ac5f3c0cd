"""Where series are cut into blocks, and which spans a compression rewrites."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit import cutting
from toolkit.cutting import cut, spans_to_pack
from toolkit.timegrid import DAY, Span

SMALL = 8


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "TARGET", SMALL)


def _within(ts: np.ndarray, span: Span) -> int:
    return int(np.count_nonzero((ts >= span.start) & (ts < span.end)))


INSTANTS = st.lists(st.integers(0, 999), max_size=60).map(lambda ts: np.array(sorted(ts), np.int64))


@given(INSTANTS)
def test_spans_tile_what_is_cut_and_none_holds_much_more_than_a_block(ts: np.ndarray) -> None:
    span = Span(0, 1_000)
    spans = cut(span, ts)
    if not len(ts):
        assert spans == []
        return
    assert spans[0].start == 0
    assert spans[-1].end == 1_000
    assert all(a.end == b.start for a, b in pairwise(spans))
    same = max(np.unique(ts, return_counts=True)[1].tolist())  # one instant stays together
    assert max(_within(ts, s) for s in spans) <= 2 * SMALL + same
    assert len(spans) <= -(-len(ts) // SMALL)


def test_an_even_series_is_cut_evenly() -> None:
    ts = np.arange(30, dtype=np.int64) * 10
    assert [_within(ts, s) for s in cut(Span(0, 300), ts)] == [7, 7, 7, 9]


def test_cuts_stand_at_round_times_where_that_moves_them_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cutting, "TARGET", 10_240)
    month = Span(0, 30 * DAY)
    ts = np.arange(0, month.end, 60_000_000, dtype=np.int64)
    assert [s.start // DAY for s in cut(month, ts)] == [0, 6, 12, 18, 24]
    assert all(s.start % DAY == 0 for s in cut(month, ts))


@given(INSTANTS)
def test_what_still_grows_gives_full_blocks_only(ts: np.ndarray) -> None:
    spans = cut(Span(0, 1_000), ts, is_closed=False)
    assert all(a.end == b.start for a, b in pairwise(spans))
    assert all(_within(ts, s) for s in spans)
    assert len(spans) <= len(ts) // SMALL
    if spans:
        assert spans[-1].end <= ts[-1]


BLOCKS = st.lists(st.integers(0, 1_000), unique=True, max_size=8).map(
    lambda edges: [Span(a, b) for a, b in pairwise(sorted(edges))][::2]
)


@given(INSTANTS, BLOCKS, st.lists(st.integers(1, 10), min_size=8, max_size=8), st.booleans())
def test_every_row_of_closed_time_is_in_one_span_and_no_block_is_cut(
    ts: np.ndarray, blocks: list[Span], counts: list[int], is_closed: bool
) -> None:
    region = Span(0, 1_000)
    held = list(zip(blocks, counts, strict=False))
    spans = spans_to_pack(region, ts, held, is_closed=is_closed)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    for block in blocks:
        overlapping = [s for s in spans if s.start < block.end and block.start < s.end]
        assert all(s.start <= block.start and block.end <= s.end for s in overlapping)
    covered = sum(_within(ts, s) for s in spans)
    if is_closed:
        assert covered == len(ts)
    else:  # only what comes after the last block may wait
        last = blocks[-1].end if blocks else 0
        assert covered >= np.count_nonzero(ts < last)
        assert len(ts) - covered < 3 * SMALL + max([1, *np.unique(ts, return_counts=True)[1]])
    assert all(_within(ts, s) for s in spans)


def test_few_rows_behind_a_block_join_it() -> None:
    held = [(Span(0, 100), 3)]
    late = np.array([100, 110], np.int64)
    assert spans_to_pack(Span(0, 200), late, held, is_closed=True) == [Span(0, 200)]
    assert spans_to_pack(Span(0, 200), late, held, is_closed=False) == []


def test_a_row_in_a_block_and_one_behind_it_are_one_span() -> None:
    held = [(Span(0, 100), 3)]
    rows = np.array([50, 110], np.int64)
    assert spans_to_pack(Span(0, 200), rows, held, is_closed=True) == [Span(0, 200)]
