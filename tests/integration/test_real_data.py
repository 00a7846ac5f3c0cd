"""Real bars and trades, with their gaps and shared milliseconds, against pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

STRATEGIES = ("auto", "direct", "aggregated", "downsampled")
STEPS = ("5m", "15m", "1h", "4h", "1d")
MIDNIGHTS = ("UTC", "Europe/Berlin", "America/New_York")
TOLERANCE = 1e-12


def bitcoin(folder: Path) -> pd.DataFrame:
    frame = pd.read_csv(folder / "btc_perp_1m_2022-01.csv", parse_dates=["timestamp"])
    frame["ts"] = frame.pop("timestamp").dt.tz_localize("UTC")
    return frame


def pound(folder: Path) -> pd.DataFrame:
    frame = pd.read_csv(folder / "gbpusd_1m_2012-02.csv", parse_dates=["timestamp"])
    return frame.rename(columns={"timestamp": "ts"})


def trades(folder: Path) -> pd.DataFrame:
    frame = pd.read_feather(folder / "xrp_eth_trades_2019-10.feather")
    return pd.DataFrame(
        {
            "ts": pd.to_datetime(frame["timestamp"], unit="ms", utc=True),
            "seq": frame["id"].astype("int64"),
            "price": frame["price"],
            "size": frame["amount"],
            "side": frame["side"],
        }
    )


def freq(step: str) -> str:
    return step.replace("m", "min").replace("d", "D")


def candles_of(frame: pd.DataFrame, step: str, tz: str = "UTC") -> pd.DataFrame:
    """What pandas makes of minute bars; its days begin at the zone's midnight, too."""
    mine = frame.assign(mean=(frame["high"] + frame["low"] + frame["close"]) / 3)
    if "volume" not in mine:
        mine["volume"] = np.nan
    mine["pv"] = mine["mean"] * mine["volume"]
    groups = mine.set_index(mine["ts"].dt.tz_convert(tz)).resample(freq(step), origin="start_day")
    found = groups.agg({"open": "first", "high": "max", "low": "min", "close": "last"})
    found["volume"] = groups["volume"].sum(min_count=1)
    found["vwap"] = groups["pv"].sum(min_count=1) / found["volume"]
    found = found[groups.size() > 0]
    return found.set_index(found.index.tz_convert("UTC"))


def check(cols: Any, expected: pd.DataFrame, columns: tuple[str, ...]) -> None:
    got = cols.to_pandas().set_index("ts")
    assert got.index.tolist() == expected.index.tolist()
    for column in columns:
        exact = column in ("open", "high", "low", "close")
        mine, theirs = got[column].to_numpy(), expected[column].to_numpy()
        if exact:
            assert np.array_equal(mine, theirs, equal_nan=True), column
        else:
            assert np.allclose(mine, theirs, rtol=TOLERANCE, atol=0, equal_nan=True), column


CANDLE = ("open", "high", "low", "close", "volume", "vwap")


@pytest.mark.parametrize("load", [bitcoin, pound], ids=["btc", "gbpusd"])
def test_bars_of_minute_bars_are_those_of_pandas(store: Any, shared_data: Path, load: Any) -> None:
    frame = load(shared_data)
    assert store.write("candles", frame, series="x").inserted == len(frame)
    span = (frame["ts"].min(), frame["ts"].max() + pd.Timedelta("1us"))
    for is_fresh in (False, True):
        if is_fresh:
            store.refresh("candles")
        for step in STEPS:
            for tz in MIDNIGHTS if step == "1d" else MIDNIGHTS[:1]:
                expected = candles_of(frame, step, tz)
                for strategy in STRATEGIES:
                    cols = store.read("candles", "x", *span, step=step, tz=tz, strategy=strategy)
                    check(cols, expected, CANDLE)


def test_a_cut_out_of_real_bars_counts_only_what_lies_inside(store: Any, shared_data: Path) -> None:
    frame = bitcoin(shared_data)
    store.write("candles", frame, series="x")
    store.refresh("candles")
    for start, end in (
        ("2021-12-31T23:17:00Z", "2022-01-01T00:43:00Z"),
        ("2022-01-14T11:59:59.999999Z", "2022-01-30T07:31:00.000001Z"),
    ):
        inside = frame[(frame["ts"] >= start) & (frame["ts"] < end)]
        for strategy in STRATEGIES:
            cols = store.read("candles", "x", start, end, step="1h", strategy=strategy)
            check(cols, candles_of(inside, "1h"), CANDLE)


def test_real_bars_come_back_as_they_were_written(store: Any, shared_data: Path) -> None:
    for name, frame in (("btc", bitcoin(shared_data)), ("gbp", pound(shared_data))):
        store.write("candles", frame, series=name)
        cols = store.read("candles", name, "2000-01-01T00:00Z", "2030-01-01T00:00Z")
        assert cols.ts.tolist() == frame["ts"].dt.tz_localize(None).to_numpy("M8[us]").tolist()
        for column in ("open", "high", "low", "close"):
            assert cols[column].tobytes() == frame[column].to_numpy().tobytes()
        if "volume" not in frame:
            assert np.isnan(cols["volume"]).all()
        assert store.write("candles", frame, series=name).unchanged == len(frame)


def test_gaps_are_not_filled_and_a_missing_volume_is_nan(store: Any, shared_data: Path) -> None:
    # TRAPS 10 and 14
    frame = pound(shared_data)
    store.write("candles", frame, series="x")
    store.refresh("candles")
    cols = store.read(
        "candles", "x", "2012-01-01T00:00Z", "2012-04-01T00:00Z", step="1h", strategy="downsampled"
    )
    hours = frame["ts"].dt.floor("1h").nunique()
    assert len(cols) == hours < 29 * 24
    assert np.isnan(cols["volume"]).all()
    assert np.isnan(cols["vwap"]).all()


def bars_of_trades(frame: pd.DataFrame, step: str) -> pd.DataFrame:
    mine = frame.sort_values(["ts", "seq"]).assign(pv=frame["price"] * frame["size"])
    groups = mine.set_index("ts").resample(freq(step))
    found = groups["price"].agg(["first", "max", "min", "last"])
    found.columns = pd.Index(["open", "high", "low", "close"])
    found["volume"] = groups["size"].sum()
    found["vwap"] = groups["pv"].sum() / found["volume"]
    return found[groups.size() > 0]


def test_bars_of_trades_are_those_of_pandas(store: Any, shared_data: Path) -> None:
    # TRAPS 11: 2,490 trades share their millisecond with an earlier one; first and last go by id
    frame = trades(shared_data)
    assert frame["ts"].duplicated().sum() == 2_490
    shuffled = frame.sample(frac=1, random_state=7)
    assert store.write("trades", shuffled, series="x").inserted == len(frame)
    span = (frame["ts"].min(), frame["ts"].max() + pd.Timedelta("1us"))
    for is_fresh in (False, True):
        if is_fresh:
            store.refresh("trades")
        for step in ("1m", *STEPS):
            expected = bars_of_trades(frame, step)
            for strategy in STRATEGIES:
                cols = store.read("trades", "x", *span, step=step, strategy=strategy)
                check(cols, expected, CANDLE)
    cols = store.read("trades", "x", *span, step="1h", where={"side": "buy"})
    check(cols, bars_of_trades(frame[frame["side"] == "buy"], "1h"), CANDLE)


def test_trades_without_ids_keep_their_order(store: Any, shared_data: Path) -> None:
    frame = trades(shared_data).sort_values(["ts", "seq"], kind="stable")
    chunks = (frame.iloc[i : i + 1_000].drop(columns="seq") for i in range(0, len(frame), 1_000))
    assert store.write("trades", chunks, series="x").inserted == len(frame)
    cols = store.read("trades", "x", "2019-01-01T00:00Z", "2020-01-01T00:00Z")
    assert cols["price"].tobytes() == frame["price"].to_numpy().tobytes()
    names = cols.categories["side"]
    assert [names[c] for c in cols["side"]] == frame["side"].tolist()
