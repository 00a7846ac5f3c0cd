"""The times, conditions and values that people type, and how values are shown."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from rich.console import Console

from toolkit.cli import render
from toolkit.cli.conditions import read_aggregates, read_conditions, read_labels
from toolkit.cli.moments import read_time
from toolkit.cli.render import plain, shown, table_of
from toolkit.cli.topology import _HEADERS, _NUMBERS, _rows
from toolkit.dataset import TRADES, Column, Dataset
from toolkit.errors import QueryError, UnknownName
from toolkit.nodes import NodeReport
from toolkit_routing import Lag

NOW = datetime(2024, 3, 31, 10, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "tz", "wanted"),
    [
        ("2024-01-31", "UTC", "2024-01-31T00:00+00:00"),
        ("2024-01-31", "Europe/Berlin", "2024-01-30T23:00+00:00"),
        ("2024-01-31 09:30", "America/New_York", "2024-01-31T14:30+00:00"),
        ("2024-01-31T09:30:00Z", "America/New_York", "2024-01-31T09:30+00:00"),
        ("2024-01-31T09:30:00+05:30", "UTC", "2024-01-31T04:00+00:00"),
        ("now", "Asia/Tokyo", "2024-03-31T10:30:15+00:00"),
        ("now-90m", "UTC", "2024-03-31T09:00:15+00:00"),
        ("now + 1h", "UTC", "2024-03-31T11:30:15+00:00"),
        ("today", "UTC", "2024-03-31T00:00+00:00"),
        ("today", "Asia/Tokyo", "2024-03-30T15:00+00:00"),
        ("yesterday", "UTC", "2024-03-30T00:00+00:00"),
        ("tomorrow+9h", "UTC", "2024-04-01T09:00+00:00"),
        ("now-1M", "UTC", "2024-02-29T10:30:15+00:00"),
        ("today-1y", "UTC", "2023-03-31T00:00+00:00"),
        # days keep the clock's time: Berlin's clocks went forward on the 31st
        ("now-1d", "Europe/Berlin", "2024-03-30T11:30:15+00:00"),
        # Cairo's midnight of 2024-04-26 does not exist: the day begins at one
        ("2024-04-26", "Africa/Cairo", "2024-04-25T22:00+00:00"),
    ],
)
def test_time_is_read_on_the_clock_of_the_zone(text: str, tz: str, wanted: str) -> None:
    assert read_time(text, tz, now=NOW) == datetime.fromisoformat(wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2024-02-30", "not a time"),
        ("BTC-USD", "not a time"),
        ("", "not a time"),
        ("now-7", "not a time"),
        ("now-9999999y", "years"),
        ("today-900y", "hundred years"),
        ("2024-03-31 02:30", "never"),
        ("2024-10-27 02:30", "twice"),
        ("0001-01-01", "out of range"),
    ],
)
def test_time_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        read_time(text, "Europe/Berlin", now=NOW, what="START")


MIXED = Dataset(
    "mixed",
    (Column("f"), Column("n", "int"), Column("b", "bool"), Column("c", "category"),
     Column("d", "decimal(2)")),
    (), ladder=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("f>10", ("f", ">", 10.0)),
        (" f <= -1e3 ", ("f", "<=", -1000.0)),
        ("n==3", ("n", "=", 3)),
        ("n<>3", ("n", "!=", 3)),
        ("b = True", ("b", "=", True)),
        ("c=buy", ("c", "=", "buy")),
        ("c != 'it''s; %'", ("c", "!=", "it''s; %")),
        ("c in buy, sell", ("c", "in", ["buy", "sell"])),
        ("n in (1,2)", ("n", "in", [1, 2])),
        ("d=1.25", ("d", "=", "1.25")),
        ("f is null", ("f", "is null", None)),
        ("f IS NOT NULL", ("f", "is not null", None)),
    ],
)
def test_condition_has_values_of_its_columns_type(text: str, wanted: object) -> None:
    assert read_conditions([text], MIXED) == [wanted]


def test_condition_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(QueryError, match="write COLUMN OPERATOR VALUE"):
        read_conditions(["f~1"], MIXED)
    with pytest.raises(QueryError, match="no value for f"):
        read_conditions(["f>ten"], MIXED)
    with pytest.raises(UnknownName, match="did you mean 'price'"):
        read_conditions(["prise>1"], TRADES)
    with pytest.raises(QueryError, match="COLUMN=KIND"):
        read_aggregates(["close"])
    with pytest.raises(QueryError, match="KEY=VALUE"):
        read_labels(["venue"])


def test_json_is_valid_whatever_the_values_are() -> None:
    value = {
        "nan": float("nan"),
        "inf": float("inf"),
        "money": Decimal("1.50"),
        "ts": datetime(2024, 1, 1, tzinfo=UTC),
        "all": (1, True, None, "é\x00"),
    }
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {
        "nan": None,
        "inf": "Infinity",
        "money": "1.50",
        "ts": "2024-01-01T00:00:00Z",
        "all": [1, True, None, "é\x00"],
    }
    with pytest.raises(TypeError):
        plain(object())


def test_topology_fits_a_terminal_of_80_columns() -> None:
    lag = Lag(1_000_000_000, None, 0.0, None, None)
    names = ("replica1", "pg3")
    reports = [
        NodeReport("main", n, "primary", "replica", True, "", "18.10", 12, lag, -0.123, "0003")
        for n in names
    ]
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(table_of(_HEADERS, _rows(reports), numbers=_NUMBERS))
    lines = screen.export_text().splitlines()
    for name in names:
        (line,) = [line.split() for line in lines if name in line]
        assert " ".join(line) == f"{name} replica, 18.10 12 953.7 MB unknown 0003 -0.123 s"


@pytest.mark.parametrize("width", [8, 14, 21, 40])
def test_no_letter_of_a_table_is_lost_however_narrow(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "_width", lambda: width)
    for headers in (("index",), ("index", "rows"), ("index", "rows", "why")):
        row = ("abcdefghijklmnopqrst", 12_345, "uvwxyz")[: len(headers)]
        render.echo_table(headers, [row], numbers=["rows"], words=["why"])
        printed = capsys.readouterr().out
        assert set("".join(map(str, row)).replace("12345", "12,345")) <= set(printed)
        assert max(map(len, printed.splitlines())) <= width


def test_cell_holds_nothing_that_a_terminal_obeys() -> None:
    assert shown("a\x1b]0;title\x07\nb") == "a\\x1b]0;title\\x07\\nb"
    assert shown("🚀 [bold]x[/]") == "🚀 [bold]x[/]"
    assert len(shown("x" * 300)) < 50
