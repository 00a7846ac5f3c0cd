"""Rows and blocks as one table, against a dictionary that takes the blocks first, then the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.blocks import encode_parts, identity
from toolkit.decode import Packing
from toolkit.drivers.decoding import DecodePool
from toolkit.errors import CorruptBlock
from toolkit.merging import Cold, Merged, merge_cold, run_here
from toolkit.timegrid import PG_EPOCH, Span

Key = tuple[int, int]
PACKING = Packing.of([("seq", "int"), ("price", "float"), ("side", "category")])
STORED = ("ts", "seq", "price", "side")
NAMES = {7: "BTC", 9: "ETH"}
SIDES = ("buy", "sell", "")
_STAMP = np.dtype(">i8")


def _wire(instants: Sequence[int]) -> bytes:
    return (np.array(instants, np.int64) - PG_EPOCH).astype(_STAMP).tobytes()


def _points_row(series: int, points: Mapping[Key, tuple[float, str]], order: list[Key]) -> Any:
    wide = np.empty((len(order), 3), _STAMP)
    for at, key in enumerate(order):
        price = np.array([points[key][0]], np.float64).view(np.int64)[0]
        wide[at] = key[0] - PG_EPOCH, key[1], price
    sides = b"".join(points[key][1].encode() + b"\x00" for key in order)
    return (series, len(order), wide.tobytes(), sides, *[None] * 6, False)


def _block_row(
    series: int, span: Span, points: Mapping[Key, tuple[float, str]], has_next: bool
) -> Any:
    keys = sorted(points)
    sides = tuple(dict.fromkeys(points[k][1] for k in keys))
    codes = np.array([sides.index(points[k][1]) for k in keys], np.int32)
    header, parts = encode_parts(
        np.array([k[0] for k in keys], np.int64),
        {
            "seq": np.array([k[1] for k in keys], np.int64),
            "price": np.array([points[k][0] for k in keys], np.float64),
            "side": codes,
        },
        {"side": sides},
        stamp=identity("trades", series, span.start, span.end),
    )
    return (series, None, None, None, _wire([span.start, span.end]), header, *parts, has_next)


VALUES = st.tuples(st.sampled_from([1.0, -0.0, 2.5]), st.sampled_from(SIDES))
KEYS = st.tuples(st.integers(0, 99), st.integers(-2, 2))
POINTS = st.dictionaries(KEYS, VALUES, max_size=25)
EDGES = st.lists(st.integers(0, 100), unique=True, max_size=6)


def _split(points: Mapping[Key, Any], edges: list[int]) -> list[tuple[Span, dict[Key, Any]]]:
    spans = [Span(a, b) for a, b in pairwise(sorted(edges))]
    cut = [(s, {k: v for k, v in points.items() if s.start <= k[0] < s.end}) for s in spans]
    return [(s, p) for s, p in cut if p]


def _asked(
    rows: Mapping[Key, Any],
    blocks: list[tuple[Span, dict[Key, Any]]],
    span: Span,
    limit: int | None,
    after: Key | None,
    descending: bool,
) -> list[Any]:
    """Return what the statement of points gives for one series."""
    mine = [k for k in sorted(rows, reverse=descending) if span.start <= k[0] < span.end]
    if after is not None:
        mine = [k for k in mine if k > after]
    mine = mine[:limit]
    found = [(s, p) for s, p in blocks if s.start < span.end and s.end > span.start]
    found.sort(key=lambda b: b[0].start, reverse=descending)
    answer = [_points_row(7, rows, mine)]
    before = 0
    for number, (own, points) in enumerate(found):
        if limit is not None and before >= limit:
            break
        has_next = limit is not None and number + 1 < len(found)
        answer.append(_block_row(7, own, points, has_next))
        before += len(points) if number else 0
    return answer


def _shown(merged: Merged) -> list[Any]:
    table = merged.table
    sides = table.categories["side"]
    return [
        ((ts, seq), (price, str(sides[code])))
        for ts, seq, price, code in zip(
            table.ts.tolist(),
            table.values["seq"].tolist(),
            table.values["price"].tolist(),
            table.values["side"].tolist(),
            strict=True,
        )
    ]


@given(POINTS, POINTS, EDGES, st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_of_equal_keys_the_row_counts(
    rows: dict[Key, Any],
    old: dict[Key, Any],
    edges: list[int],
    start: int,
    end: int,
    descending: bool,
) -> None:
    span = Span(min(start, end), max(start, end))
    blocks = _split(old, edges)
    model = {k: v for _, points in blocks for k, v in points.items()} | rows
    wanted = [(k, v) for k, v in sorted(model.items()) if span.start <= k[0] < span.end]
    answer = _asked(rows, blocks, span, None, None, descending)
    cold = Cold("trades", PACKING, STORED, NAMES, span, descending=descending)
    merged = merge_cold(cold, answer, {7: 0}, run_here)
    assert _shown(merged) == (wanted[::-1] if descending else wanted)
    assert merged.reached is None
    own = {k for k in rows if span.start <= k[0] < span.end}
    assert merged.from_blocks == len(wanted) - len(own)


@given(POINTS, POINTS, EDGES, st.integers(1, 9), st.none() | KEYS, st.booleans())
def test_a_limit_gives_the_first_and_says_up_to_where_nothing_is_missing(
    rows: dict[Key, Any],
    old: dict[Key, Any],
    edges: list[int],
    limit: int,
    after: Key | None,
    descending: bool,
) -> None:
    after = None if descending else after
    span = Span(after[0] if after is not None else 0, 100)
    blocks = _split(old, edges)
    model = {k: v for _, points in blocks for k, v in points.items()} | rows
    wanted = [k for k in sorted(model, reverse=descending) if after is None or k > after]
    answer = _asked(rows, blocks, span, limit, after, descending)
    cold = Cold("trades", PACKING, STORED, NAMES, span, limit, after, descending)
    merged = merge_cold(cold, answer, {7: 0}, run_here)
    shown = [k for k, _ in _shown(merged)]
    assert shown == wanted[: len(shown)]
    assert len(shown) <= limit
    if merged.reached is None:
        assert len(shown) == min(limit, len(wanted))
    elif not descending:
        assert shown == [k for k in wanted if k <= merged.reached]
        assert len(shown) < limit or shown[-1] == merged.reached


@given(POINTS, EDGES, POINTS)
def test_series_keep_their_codes_and_order(
    old: dict[Key, Any], edges: list[int], others: dict[Key, Any]
) -> None:
    blocks = _split(old, edges)
    answer = [_points_row(9, others, sorted(others)), _points_row(7, {}, [])]
    answer += [_block_row(7, span, points, False) for span, points in blocks]
    cold = Cold("trades", PACKING, STORED, NAMES, Span(0, 100))
    merged = merge_cold(cold, answer, {9: 0, 7: 1}, run_here)
    here = sum(len(points) for _, points in blocks)
    assert merged.table.series.tolist() == [0] * len(others) + [1] * here


def test_threads_decode_the_same_as_one() -> None:
    points = {(t, 0): (float(t), SIDES[t % 3]) for t in range(100)}
    blocks = _split(points, list(range(0, 101, 5)))
    answer = [_points_row(7, {}, []), *(_block_row(7, s, p, False) for s, p in blocks)]
    cold = Cold("trades", PACKING, STORED, NAMES, Span(0, 100))
    pool = DecodePool(most=3)
    try:
        assert _shown(merge_cold(cold, answer, {7: 0}, pool.run)) == _shown(
            merge_cold(cold, answer, {7: 0}, run_here)
        )
    finally:
        pool.close()


def test_damage_names_dataset_series_and_span() -> None:
    block = list(_block_row(7, Span(0, 10), {(1, 0): (1.0, "buy")}, False))
    cold = Cold("trades", PACKING, STORED, NAMES, Span(0, 100))
    for place in (5, 6, 7, 8, 9):
        damaged = list(block)
        damaged[place] = damaged[place][:-1] + bytes([damaged[place][-1] ^ 1])
        with pytest.raises(CorruptBlock, match=r"'trades', series 'BTC', block \[1970") as caught:
            merge_cold(cold, [_points_row(7, {}, []), tuple(damaged)], {7: 0}, run_here)
        assert caught.value.span == Span(0, 10)


def test_a_block_in_another_place_is_none() -> None:
    moved = list(_block_row(7, Span(0, 10), {(1, 0): (1.0, "buy")}, False))
    moved[4] = _wire([10, 20])
    cold = Cold("trades", PACKING, STORED, NAMES, Span(0, 100))
    with pytest.raises(CorruptBlock, match="belongs to"):
        merge_cold(cold, [_points_row(7, {}, []), tuple(moved)], {7: 0}, run_here)
    other = (9, *_block_row(7, Span(0, 10), {(1, 0): (1.0, "buy")}, False)[1:])
    with pytest.raises(CorruptBlock, match=r"'ETH'.*belongs to"):
        merge_cold(cold, [_points_row(9, {}, []), other], {9: 0}, run_here)
