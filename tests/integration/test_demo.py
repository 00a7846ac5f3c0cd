"""The demo on a small share of its bars: it tells the truth, starts warm, and goes on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from fix_servers import Database
from rich.console import Console

import toolkit
from toolkit.config import load_settings
from toolkit.demo import minutes, tour
from toolkit.demo.bars import DailyBars, read_daily
from toolkit.demo.load import load

SINCE = "2012-06-01"


@pytest.fixture(scope="module")
def daily() -> dict[str, DailyBars]:
    return {t: b.between("2012-05-25", "2012-07-30") for t, b in read_daily().items()}


def run(database: Database, daily: dict[str, DailyBars], path: Path) -> tuple[tour.Tour, str]:
    out = io.StringIO()
    settings = load_settings(database.dsn)
    return tour.run(settings, daily, SINCE, path, Console(file=out, width=140)), out.getvalue()


def test_the_demo_loads_reads_and_draws_and_the_second_run_is_warm(
    database: Database, daily: dict[str, DailyBars], tmp_path: Path
) -> None:
    chart = tmp_path / "demo-candles.png"
    first, printed = run(database, daily, chart)
    assert first.loaded.rows == 44 * 5 + 40 * 5 * minutes.SESSION
    assert first.all_agree
    assert first.late_bar_was_seen
    strategies = {a.strategy.split()[0] for a in first.answers}
    assert strategies == {"direct", "aggregated", "downsampled"}
    assert all(a.points for a in first.answers if "above 760" not in a.words)
    for words in ("rows touched", "because", "asyncio", "Index Only Scan", "put back"):
        assert words in printed
    assert chart.read_bytes().startswith(b"\x89PNG")

    second, printed = run(database, daily, chart)
    assert second.loaded.was_warm
    assert "there already" in printed
    assert [a.points for a in second.answers] == [a.points for a in first.answers]


def test_the_days_read_from_minutes_are_the_real_daily_bars(
    database: Database, daily: dict[str, DailyBars]
) -> None:
    with toolkit.connect(database.dsn) as store:
        load(store, daily, SINCE, Console(file=io.StringIO()))
        bars = store.read(
            "candles",
            "IBM/1m",
            f"{SINCE}T00:00Z",
            "2013-01-01T00:00Z",
            step="1d",
            tz="America/New_York",
            strategy="downsampled",
        )
        real = store.read("candles", "IBM", f"{SINCE}T00:00Z", "2013-01-01T00:00Z")
        columns = ["open", "high", "low", "close", "volume"]
        pd.testing.assert_frame_equal(bars.to_pandas()[columns], real.to_pandas()[columns])
        ours = store.series("candles", {"venue": "NYSE", "step": "1m"})
        assert [s.name for s in ours] == ["IBM/1m"]


def test_an_interrupted_load_goes_on_where_it_stopped(
    database: Database, daily: dict[str, DailyBars], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made = minutes.frames, list[str]()

    def interrupted(parts: list[minutes.Chunk]) -> Iterator[pd.DataFrame]:
        for part, frame in zip(parts, whole(parts), strict=True):
            if part.daily.ticker == "GOOG":
                raise KeyboardInterrupt
            yield frame

    def counted(parts: list[minutes.Chunk]) -> Iterator[pd.DataFrame]:
        made.extend(p.daily.ticker for p in parts)
        return whole(parts)

    console = Console(file=io.StringIO())
    with toolkit.connect(database.dsn) as store:
        monkeypatch.setattr(minutes, "frames", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(store, daily, SINCE, console)
        monkeypatch.setattr(minutes, "frames", counted)
        assert not load(store, daily, SINCE, console).was_warm
        assert made == ["GOOG", "IBM", "MSFT"]
        assert load(store, daily, SINCE, console).was_warm
        count = len(store.read("candles", None, "2012-01-01T00:00Z", "2013-01-01T00:00Z"))
        assert count == 44 * 5 + 40 * 5 * minutes.SESSION
