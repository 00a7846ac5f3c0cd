"""Dataset.from_frame: what is proposed for a frame fits the frame."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from toolkit.dataset import CANDLES, Aggregate, Dataset
from toolkit.errors import InputError, SchemaError
from toolkit.ingest.frames import to_batch


def frame_of(rows: int, every: str, **columns: object) -> pd.DataFrame:
    ts = pd.date_range("2024-01-01", periods=rows, freq=every, tz="UTC")
    return pd.DataFrame({"ts": ts, **columns})


def test_candle_columns_aggregate_as_a_candle() -> None:
    values = {name: np.arange(100.0) for name in CANDLES.names}
    proposed = Dataset.from_frame(frame_of(100, "1min", **values), "bars")
    assert proposed.columns == CANDLES.columns
    assert proposed.aggregates == CANDLES.aggregates
    assert proposed.ladder == ("5m", "1h", "1d")
    assert proposed.chart == "close"
    assert not proposed.has_seq


def test_other_numbers_get_avg_min_max_sum_and_count() -> None:
    proposed = Dataset.from_frame(frame_of(10, "1s", load=np.arange(10)))
    assert proposed.name == "points"
    assert proposed.column("load").type == "int"
    assert proposed.aggregates == (
        Aggregate("load", "avg", ("load",)),
        *(Aggregate(f"load_{k}", k, ("load",)) for k in ("min", "max", "sum", "count")),
    )


def test_text_and_booleans_get_their_last_value() -> None:
    frame = frame_of(2, "1h", side=["buy", None], ok=[True, None], venue=pd.Categorical(["a", "b"]))
    proposed = Dataset.from_frame(frame)
    assert [c.type for c in proposed.columns] == ["category", "bool", "category"]
    assert {a.kind for a in proposed.aggregates} == {"last"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, None], "float"),
        (pd.array([1, None], dtype="Int64"), "int"),
        ([Decimal("1.50"), Decimal("2.125")], "decimal(3)"),
        ([Decimal("100"), None], "decimal(0)"),
        ([1, 2.5], "float"),
        ([None, None], "float"),
        (np.array([1, 2], dtype=np.uint8), "int"),
    ],
)
def test_types_follow_the_values(values: object, kind: str) -> None:
    assert Dataset.from_frame(frame_of(2, "1h", x=values)).column("x").type == kind


@pytest.mark.parametrize(
    ("every", "rows", "partition", "ladder"),
    [
        ("1D", 400, "1y", ()),
        ("1h", 100, "1y", ("1d",)),
        ("1min", 100, "1y", ("5m", "1h", "1d")),
        ("1s", 8_000, "1M", ("1m", "5m", "1h", "1d")),
        ("200ms", 80_000, "1w", ("1m", "5m", "1h", "1d")),
        ("10ms", 400_000, "1d", ("1m", "5m", "1h", "1d")),
    ],
)
def test_partition_and_ladder_follow_the_density(
    every: str, rows: int, partition: str, ladder: tuple[str, ...]
) -> None:
    proposed = Dataset.from_frame(frame_of(rows, every, x=1.0))
    assert (proposed.partition, proposed.ladder) == (partition, ladder)


def test_series_side_by_side_keep_their_own_spacing() -> None:
    hourly = frame_of(48, "1h", x=1.0)
    frame = pd.concat([hourly.assign(series="a"), hourly.assign(series="b")])
    proposed = Dataset.from_frame(frame)
    assert proposed.ladder == ("1d",)
    assert not proposed.has_seq


def test_different_rows_at_one_instant_need_seq_but_repeated_rows_do_not() -> None:
    ts = pd.to_datetime(["2024-01-01", "2024-01-01"], utc=True)
    assert Dataset.from_frame(pd.DataFrame({"ts": ts, "x": [1.0, 2.0]})).has_seq
    assert not Dataset.from_frame(pd.DataFrame({"ts": ts, "x": [1.0, 1.0]})).has_seq
    assert Dataset.from_frame(pd.DataFrame({"ts": ts, "x": [1.0, 1.0], "seq": [1, 2]})).has_seq


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_may_be_an_index_naive_or_integers(unit: str) -> None:
    frame = frame_of(10, "1min", x=1.0)
    naive = frame.assign(ts=frame["ts"].dt.tz_localize(None))
    counts = frame.assign(ts=frame["ts"].dt.as_unit(unit).astype("int64"))
    expected = Dataset.from_frame(frame)
    for same in (frame.set_index("ts"), frame.set_index("ts").rename_axis(None), naive, counts):
        assert Dataset.from_frame(same) == expected


def test_what_cannot_be_stored_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'day': times are not values"):
        Dataset.from_frame(frame_of(2, "1h", day=pd.to_datetime(["2024-01-01"] * 2)))
    with pytest.raises(InputError, match=r"'x': \[1\] is no number"):
        Dataset.from_frame(frame_of(2, "1h", x=[[1], [2]]))
    with pytest.raises(SchemaError, match="column name 'Open'"):
        Dataset.from_frame(frame_of(2, "1h", Open=[1.0, 2.0]))
    with pytest.raises(InputError, match="no column 'ts'"):
        Dataset.from_frame(pd.DataFrame({"x": [1.0]}))


def test_the_frame_can_be_written_to_what_was_proposed() -> None:
    frame = frame_of(3, "1h", x=[1, 2, 3], ok=[True, False, True], fee=[Decimal("1.5")] * 3)
    batch = to_batch(Dataset.from_frame(frame), frame, series="a")
    assert batch.values["fee"].tolist() == [15, 15, 15]
