"""arrange and runs: a batch in key order, the last of equal keys kept, and the steps it touches."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pandas as pd
import pytest
from fix_batches import as_rows
from hypothesis import given
from hypothesis import strategies as st

from toolkit.dataset import METRICS, TRADES
from toolkit.ingest.frames import Batch, arrange, runs

# arrange


def metrics(series: list[int], ts: list[int], value: list[float]) -> Batch:
    return Batch(
        METRICS,
        tuple(f"s{i}" for i in range(5)),
        np.array(series, dtype=np.int32),
        np.array(ts, dtype=np.int64),
        None,
        {"value": np.array(value, dtype=np.float64)},
    )


keys = st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 5), st.integers(-2, 2)), max_size=40)


@given(keys)
def test_trap_15_of_equal_keys_the_last_row_wins(rows: list[tuple[int, int, int]]) -> None:
    batch, duplicates = arrange(
        metrics([r[0] for r in rows], [r[1] for r in rows], [float(i) for i in range(len(rows))])
    )
    frame = pd.DataFrame(rows, columns=["series", "ts", "_"]).assign(value=np.arange(len(rows)))
    expected = frame.drop_duplicates(["series", "ts"], keep="last").sort_values(["series", "ts"])
    assert batch.series.tolist() == expected["series"].tolist()
    assert batch.ts.tolist() == expected["ts"].tolist()
    assert batch.values["value"].tolist() == expected["value"].tolist()
    assert duplicates == len(rows) - len(expected)


def trades(rows: list[tuple[int, int, int]], seq: list[int] | None) -> Batch:
    return Batch(
        TRADES,
        tuple(f"s{i}" for i in range(5)),
        np.array([r[0] for r in rows], dtype=np.int32),
        np.array([r[1] for r in rows], dtype=np.int64),
        None if seq is None else np.array(seq, dtype=np.int64),
        {
            "price": np.arange(len(rows), dtype=np.float64),
            "size": np.ones(len(rows)),
            "side": np.full(len(rows), -1, np.int32),
        },
        {"side": ()},
    )


@given(keys)
def test_equal_keys_with_seq_are_told_apart_by_it(rows: list[tuple[int, int, int]]) -> None:
    batch, duplicates = arrange(trades(rows, [r[2] for r in rows]))
    frame = pd.DataFrame(rows, columns=["series", "ts", "seq"]).assign(price=np.arange(len(rows)))
    key = ["series", "ts", "seq"]
    expected = frame.drop_duplicates(key, keep="last").sort_values(key)
    assert batch.seq is not None
    assert batch.seq.tolist() == expected["seq"].tolist()
    assert batch.values["price"].tolist() == expected["price"].tolist()
    assert duplicates == len(rows) - len(expected)


@given(keys)
def test_trap_11_points_without_seq_are_numbered_in_the_frames_order(
    rows: list[tuple[int, int, int]],
) -> None:
    batch, duplicates = arrange(trades(rows, None))
    frame = pd.DataFrame(rows, columns=["series", "ts", "_"]).assign(price=np.arange(len(rows)))
    frame["seq"] = frame.groupby(["series", "ts"]).cumcount()
    expected = frame.sort_values(["series", "ts", "seq"])
    assert batch.seq is not None
    assert batch.seq.tolist() == expected["seq"].tolist()
    assert batch.values["price"].tolist() == expected["price"].tolist()
    assert duplicates == 0


@given(keys, st.integers(1, 7))
def test_numbers_run_on_over_chunks(rows: list[tuple[int, int, int]], size: int) -> None:
    rows = sorted(rows, key=lambda r: r[1])
    whole, _ = arrange(trades(rows, None))
    numbering: dict[str, tuple[int, int]] = {}
    found = set()
    for chunk in (
        itertools.batched(rows, size)
        if sys.version_info >= (3, 12)
        else [rows[i : i + size] for i in range(0, len(rows), size)]
    ):
        batch, _ = arrange(trades(list(chunk), None), numbering)
        found |= {r[:3] for r in as_rows(batch)}
    assert found == {r[:3] for r in as_rows(whole)}


def test_a_batch_in_order_is_not_copied() -> None:
    batch = metrics([0, 0, 1], [1, 2, 0], [1.0, 2.0, 3.0])
    assert arrange(batch).batch is batch


def test_many_series_are_ordered_too() -> None:
    count = 70_000
    codes = np.random.default_rng(1).permutation(count).astype(np.int32)
    names = tuple(map(str, range(count)))
    batch = Batch(METRICS, names, codes, np.zeros(count, np.int64), None, {"value": codes * 1.0})
    arranged, _ = arrange(batch)
    assert arranged.series.tolist() == list(range(count))
    assert arranged.values["value"].tolist() == list(range(count))


# runs


@given(keys, st.sampled_from([(1, 1), (1, 2), (2, 4), (3, 9), (10, 10)]))
def test_runs_cover_exactly_the_touched_steps(
    rows: list[tuple[int, int, int]], widths: tuple[int, int]
) -> None:
    step, cell = widths
    batch, _ = arrange(metrics([r[0] for r in rows], [r[1] for r in rows], [0.0] * len(rows)))
    found = runs(batch, step, cell)
    touched = {(s, t // step) for s, t, _ in rows}
    covered = [
        (code, k)
        for code, lo, hi in zip(*(a.tolist() for a in found), strict=True)
        for k in range(lo // step, hi // step)
    ]
    assert len(covered) == len(set(covered))
    assert set(covered) == touched
    for lo, hi in zip(found.lo.tolist(), found.hi.tolist(), strict=True):
        assert lo % step == hi % step == 0
        assert lo // cell == (hi - 1) // cell
    joined = {(c, h) for c, h in zip(found.code.tolist(), found.hi.tolist(), strict=True)}
    starts = {(c, x) for c, x in zip(found.code.tolist(), found.lo.tolist(), strict=True)}
    assert all(at % cell == 0 for _, at in joined & starts)


def test_trap_18_two_strays_are_two_runs_not_everything_between() -> None:
    day = 86_400_000_000
    found = runs(metrics([0, 0], [0, 92 * day], [1.0, 1.0]), 300_000_000, day)
    assert found.lo.tolist() == [0, 92 * day]
    assert found.hi.tolist() == [300_000_000, 92 * day + 300_000_000]


def test_a_cell_that_is_no_multiple_of_the_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        runs(metrics([0], [0], [0.0]), 3, 10)
