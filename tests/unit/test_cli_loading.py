"""Reading files to be loaded: columns, values, lines of what is wrong, bounded memory."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from toolkit.cli.loading import delimited
from toolkit.cli.loading.check import Clock, Found, Source, check, open_source
from toolkit.cli.loading.delimited import DelimitedFile
from toolkit.cli.loading.fitting import fit, read_wish
from toolkit.config import Settings
from toolkit.dataset import CANDLES, TRADES, Column, Dataset
from toolkit.errors import InputError, MissingExtra, QueryError
from toolkit.ingest.frames import Batch, to_batch

HEADER = "ts,open,high,low,close,volume\n"
MIXED = Dataset(
    "mixed",
    (Column("f"), Column("n", "int"), Column("b", "bool"), Column("c", "category"),
     Column("d", "decimal(2)")),
    (), ladder=(),
)  # fmt: skip


def line(minute: int, close: object = 1.5) -> str:
    ts = datetime(2024, 1, 1 + minute // 1440, minute // 60 % 24, minute % 60, tzinfo=UTC)
    return f"{ts:%Y-%m-%dT%H:%M:%SZ},1,2,0.5,{close},10\n"


@pytest.fixture(params=["arrow", "csv"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """CSV is read with and without pyarrow, and the difference is not to be seen."""
    if request.param == "csv":
        monkeypatch.setattr(delimited, "find_spec", lambda name: None)
    return str(request.param)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "bars.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def opened(path: Path, dataset: Dataset = CANDLES, **options: Any) -> Source:
    clock = Clock(options.pop("tz", None), options.pop("unit", None))
    wish = read_wish(
        options.pop("maps", ()),
        series=options.pop("series", "X"),
        ignores_extra=options.pop("ignores_extra", False),
    )
    return open_source(path, dataset, wish, clock, **options)


def checked(*sources: Source) -> tuple[Found, Any]:
    return check(sources, Settings().plausible, lambda file, read: None)


def batch(path: Path, dataset: Dataset = CANDLES, **options: Any) -> Batch:
    source = opened(path, dataset, **options)
    frames = [frame for _, frame in source.frames(lambda file, read: None)]
    assert len(frames) == 1
    clock = source.clock
    return to_batch(dataset, frames[0], series=source.series, tz=clock.tz, time_unit=clock.unit)


# -- lines --------------------------------------------------------------------------------------


def test_broken_value_is_named_by_its_line(write: Any, parser: str) -> None:
    rows = [line(i) for i in range(500)]
    rows[250] = line(250, "1.5x")
    path = write(HEADER + "".join(rows))
    with pytest.raises(InputError) as raised:
        checked(opened(path))
    assert str(raised.value) == (
        f"{path}, line 252: column 'close': '1.5x' is not a number; nothing was stored"
    )


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("2024-01-01T00:02:00Z,1,2,3\n", "4 fields, and the header has 6"),
        ("2024-01-01T00:02:00Z,1,2,3,4,5,6\n", "7 fields, and the header has 6"),
        ("2024-01-32T00:02:00Z,1,2,3,4,5\n", "is not ISO 8601 time"),
        (",1,2,3,4,5\n", "there is no time"),
        ("1850-01-01T00:00:00Z,1,2,3,4,5\n", "not between 1900 and 2100"),
        ("2024-01-01T00:02:00Z,1,2,3,1_0,5\n", "'1_0' is not a number"),
        ("2024-01-01T00:02:00Z,1,2,3,٣,5\n", "is not a number"),
        ('2024-01-01T00:02:00Z,1,2,3,"4,5\n', "a quote opens here and is never closed"),
        (b"2024-01-01T00:02:00Z,1,2,3,\xff,5\n", "not UTF-8 (byte 0xff)"),
        ("   \n", "1 fields, and the header has 6"),
    ],
)
def test_line_counts_from_the_header_and_counts_empty_ones(
    write: Any, parser: str, bad: str | bytes, said: str
) -> None:
    before = (HEADER + line(0) + "\n\n" + line(1)).encode()
    bad = bad if isinstance(bad, bytes) else bad.encode()
    path = write(before + bad + line(3).encode())
    with pytest.raises(InputError) as raised:
        checked(opened(path))
    assert f"{path}, line 6: " in str(raised.value)
    assert said in str(raised.value)


def test_line_counts_line_ends_inside_quotes(write: Any, parser: str) -> None:
    path = write('ts,f,c\n2024-01-01T00:00Z,1,"a\nb\nc"\n2024-01-01T00:01Z,2,"d"\nbad,3,e\n')
    with pytest.raises(InputError, match=r"line 6: .*'bad'"):
        checked(opened(path, MIXED))


def test_line_is_right_in_every_block(
    write: Any, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [line(i) for i in range(300)]
    rows[271] = line(271, "x")
    path = write(HEADER + "".join(rows))
    source = opened(path)
    assert isinstance(source.file, DelimitedFile)
    source.file._block = 1000  # some twenty lines
    with pytest.raises(InputError, match="line 273: column 'close': 'x' is not a number"):
        checked(source)


def test_renamed_column_is_named_as_the_file_has_it(write: Any, parser: str) -> None:
    path = write("when,last price\n1704067200,1\n17040672000000,2\n")
    maps = ["close=last price", "ts=when"]
    with pytest.raises(InputError, match=r"line 3: column 'when': .* not between 1900 and 2100"):
        checked(opened(path, maps=maps, unit="s"))


def test_range_that_settings_allow_is_held_before_anything_is_stored(write: Any) -> None:
    source = opened(write(HEADER + line(0) + line(1)))
    plausible = Settings().plausible.__class__(0, 1_704_067_260_000_000)
    with pytest.raises(InputError, match=r"line 3: .*00:01Z is outside the range"):
        check([source], plausible, lambda file, read: None)


# -- values -------------------------------------------------------------------------------------


def test_values_are_what_their_columns_take(write: Any, parser: str) -> None:
    path = write(
        "ts,f,n,b,c,d\n"
        '2024-01-01T00:00Z, 1.5 ,7,true,"a ""b"", c",0.10\n'
        "2024-01-01T00:01Z,NaN,,,,\n"
        "2024-01-01T00:02Z,-inf,9007199254740993,0,NA,-1.25\n"
        "2024-01-01T00:03Z,1e3,+5,Yes,🚀,3\n"
    )
    found = batch(path, MIXED)
    assert found.values["f"].tolist()[0::2] == [1.5, -np.inf]
    assert np.isnan(found.values["f"].tolist()[1])
    assert found.values["n"].tolist() == [7, -(2**63), 9007199254740993, 5]
    assert found.values["b"].tolist() == [1, 2, 0, 1]
    texts = (*found.categories["c"], None)
    assert [texts[i] for i in found.values["c"].tolist()] == ['a "b", c', None, "NA", "🚀"]
    assert found.values["d"].tolist() == [10, -(2**63), -125, 300]


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("2024-01-01T00:00:00Z", {}, 1_704_067_200_000_000),
        ("2024-01-01 01:00:00+01:00", {}, 1_704_067_200_000_000),
        ("2024-01-01 00:00", {"tz": "UTC"}, 1_704_067_200_000_000),
        ("2024-01-01", {"tz": "Europe/Berlin"}, 1_704_063_600_000_000),
        ("2023-12-31T23:59:59.999999999Z", {}, 1_704_067_199_999_999),
        ("1704067200", {"unit": "s"}, 1_704_067_200_000_000),
        ("1704067200000", {"unit": "ms"}, 1_704_067_200_000_000),
        ("-1", {"unit": "ns"}, -1),
        ("1969-12-31T23:59:59.999999Z", {}, -1),
    ],
)
def test_times_are_read_on_the_clock_that_was_named(
    write: Any, parser: str, text: str, options: dict[str, Any], wanted: int
) -> None:
    assert batch(write(f"ts,close\n{text},1\n"), **options).ts.tolist() == [wanted]


def test_times_of_unknown_meaning_are_refused_with_the_option_that_says_it(
    write: Any, parser: str
) -> None:
    with pytest.raises(InputError, match="--tz UTC"):
        checked(opened(write("ts,close\n2024-01-01 00:00,1\n")))
    with pytest.raises(InputError, match=r"--time-unit .*look like ms"):
        checked(opened(write("ts,close\n1704067200000,1\n")))


def test_mark_carriage_returns_and_gzip_are_taken(write: Any, parser: str) -> None:
    text = "\ufeff" + (HEADER + line(0) + line(1)).replace("\n", "\r\n")
    assert len(batch(write(text))) == 2
    assert len(batch(write(gzip.compress(text.encode()), "bars.csv.gz"))) == 2
    assert len(batch(write((HEADER + line(0)).replace(",", "\t"), "bars.tsv"))) == 1
    assert len(batch(write((HEADER + line(0)).replace(",", ";")), delimiter=";")) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        ("ts,close\n".encode("utf-16"), "UTF-16"),
        (b"ts,close\r2024,1\r", "CR alone"),
        (b"ts,close,close\n", "two columns called 'close'"),
        (b"ts;close\n1;2\n", "--delimiter ';'"),
        (b'ts,"close\n', "never closed"),
    ],
)
def test_file_that_is_no_csv_is_refused(write: Any, parser: str, data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        opened(write(data))


def test_broken_gzip_is_refused(write: Any) -> None:
    whole = gzip.compress((HEADER + line(0)).encode() * 50)
    with pytest.raises(InputError, match="not a whole gzip file"):
        checked(opened(write(whole[:-20], "bars.csv.gz")))
    with pytest.raises(InputError, match="not a whole gzip file"):
        opened(write(b"plain", "bars.csv.gz"))


def test_header_alone_is_no_rows(write: Any, parser: str) -> None:
    found, only = checked(opened(write(HEADER)))
    assert (found.rows, found.pieces, only) == (0, 0, None)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9),
            st.floats(allow_nan=False) | st.none(),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(30, 400),
)
def test_what_csv_writes_is_read_back_whatever_the_block_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float | None]], block: int
) -> None:
    import csv

    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["series", "ts", "close"])
        for i, (name, value) in enumerate(rows):
            writer.writerow([name, f"2024-01-01T00:00:{i:02}Z", "" if value is None else value])
    source = opened(path, series=None)
    assert isinstance(source.file, DelimitedFile)
    source.file._block = block
    got: list[tuple[str, float]] = []
    for _, frame in source.frames(lambda file, read: None):
        part = to_batch(CANDLES, frame)
        names = [part.names[c] for c in part.series.tolist()]
        got += zip(names, part.values["close"].tolist(), strict=True)
    wanted = [(n, np.nan if v is None else v) for n, v in rows]
    np.testing.assert_equal(got, wanted)


# -- columnar files -----------------------------------------------------------------------------


def candles(rows: int) -> pa.Table:
    ts = pa.array(np.arange(rows) * 60_000_000 + 1_704_067_200_000_000, pa.timestamp("us", "UTC"))
    numbers = pa.array(np.arange(rows, dtype=float))
    return pa.table({"ts": ts, "close": numbers, "open": numbers})


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_columnar_files_are_read_piece_by_piece(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.cli.loading.columnar.ROWS", 1_000)
    path = tmp_path / f"bars.{kind}"
    if kind == "parquet":
        parquet.write_table(candles(2_500), path, row_group_size=700)
    else:
        feather.write_feather(candles(2_500), path, chunksize=300)
    source = opened(path)
    pieces = list(source.frames(lambda file, read: None))
    assert [p.rows for p, _ in pieces] == [1_000, 1_000, 500]
    assert pieces[-1][0].read == source.file.size == 2_500
    found, _ = checked(source)
    assert (found.rows, found.series) == (2_500, {"X": 2_500})


def test_text_in_a_columnar_file_is_read_as_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "trades.feather"
    table = pa.table(
        {
            "timestamp": pa.array([1, 2], pa.int64()),
            "id": pa.array(["12", "13"]),
            "price": pa.array(["0.5", ""]),
            "side": pa.array(["buy", None]).dictionary_encode(),
        }
    )
    feather.write_feather(table, path)
    found = batch(path, TRADES, maps=["seq=id"], unit="s")
    assert found.seq is not None
    assert found.seq.tolist() == [12, 13]
    assert found.values["price"].tolist()[0] == 0.5


def test_broken_value_in_a_columnar_file_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = candles(10).set_column(1, "close", pa.array(["1"] * 7 + ["one"] * 3))
    parquet.write_table(table, path)
    with pytest.raises(InputError, match="row 8: column 'close': 'one' is not a number"):
        checked(opened(path))


def test_columnar_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for kind in ("parquet", "feather"):
        path = tmp_path / f"x.{kind}"
        path.write_text("nothing of the kind")
        with pytest.raises(InputError, match=f"not a whole {kind.title()} file"):
            opened(path)


def test_columnar_file_without_pyarrow_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr("toolkit.cli.loading.columnar.import_module", absent)
    with pytest.raises(MissingExtra, match=r"timeseries-toolkit\[frames\]"):
        opened(tmp_path / "x.parquet")


def test_unknown_ending_asks_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="--format"):
        opened(tmp_path / "bars.xyz")


# -- columns ------------------------------------------------------------------------------------


def test_columns_are_matched_and_what_was_decided_is_said() -> None:
    found = fit(CANDLES, ["Date", "Open", "close", "id"], read_wish(["-id"], series="X"))
    assert dict(found.columns) == {"Date": "ts", "Open": "open", "close": "close"}
    assert found.notes == (
        "column 'Open' is taken as open",
        "column 'Date' is taken as ts",
        "not in the file, stored as NULL: high, low, volume",
    )


@pytest.mark.parametrize(
    ("names", "maps", "series", "said"),
    [
        (["ts", "close", "volum"], [], "X", "'volum' (did you mean 'volume'?); leave it out with"),
        (["ts", "close", "a'b"], [], "X", "--ignore-extra"),
        (["time", "date", "close"], [], "X", "--map ts=COLUMN"),
        (["ts", "close"], [], None, "give --series NAME"),
        (["ts", "series", "close"], [], "X", "leave it out with --map -series"),
        (["ts", "close"], ["clos=x"], "X", "has no column 'clos' (did you mean 'close'?)"),
        (["ts", "close"], ["close=clothes"], "X", "no column 'clothes' (did you mean 'close'?)"),
        (["ts", "close"], ["-x"], "X", "--map -x: no column 'x'"),
        (["ts", "a"], ["close=a", "open=a"], "X", "'a' of the file is named twice"),
        (["ts"], [], "X", "no column is one of open, high"),
        (["a" * 300, "close"], [], "X", "(300 characters)"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_what_to_do(
    names: list[str], maps: list[str], series: str | None, said: str
) -> None:
    with pytest.raises(InputError) as raised:
        fit(CANDLES, names, read_wish(maps, series=series))
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["close", "close=", "=x", "-", ""])
def test_map_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match="COLUMN=FILECOLUMN"):
        read_wish([text])


def test_all_that_is_in_the_files_is_counted(write: Any) -> None:
    first = write("series,ts,close\nA,2024-01-31T23:59Z,1\nB,2024-02-01T00:00Z,1\n", "a.csv")
    second = write("series,ts,close\nA,2023-12-31T00:00Z,1\n", "b.csv")
    found, only = checked(opened(first, series=None), opened(second, series=None))
    assert (found.rows, found.pieces, found.series) == (3, 2, {"A": 2, "B": 1})
    assert str(found.span) == "[2023-12-31T00:00Z, 2024-02-01T00:00:00.000001Z)"
    assert len(found.partitions) == 3
    assert only is None
