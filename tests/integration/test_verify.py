"""Damage is seen: by every read of what is damaged, and by one pass of verify."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_compressing import CLOSED, MIDDLE, blocks_of, frame, snapshot
from fix_servers import ON_ONE_VERSION, Database
from fix_stores import READINGS, create

from toolkit.blocks import encode_parts, identity, read_header
from toolkit.blocks.header import pack_header
from toolkit.errors import CorruptBlock
from toolkit.timegrid import to_us
from toolkit.verifier import Verifier

DAY = ("2024-03-04T00:00Z", "2024-03-05T00:00Z")
WEEK = ("2024-03-04T00:00Z", "2024-03-11T00:00Z")
FIRST = datetime(2024, 3, 4, 9, 30, tzinfo=UTC)
PARTS = ("_header", "ts", "value")
READS: dict[str, dict[str, Any]] = {
    "direct": {},
    "backwards": {"descending": True, "limit": 3},
    "aggregated": {"step": "1h", "strategy": "aggregated"},
    "downsampled": {"step": "1h", "strategy": "downsampled"},
    "drawn": {"points": 5},
}


def fill(store: Any, *series: str) -> None:
    """Some minutes of series in a block each, and a point that was written late."""
    for number, name in enumerate(series):
        ts = [FIRST + timedelta(minutes=7 * n) for n in range(16)]
        value = np.random.default_rng(number).integers(0, 900, 16) * 0.25
        store.write("metrics", {"ts": ts, "value": value}, series=name)
    assert store.compress("metrics", end="2024-04-01Z").blocks == len(series)
    for name in series:
        late = FIRST + timedelta(minutes=30)
        store.write("metrics", {"ts": [late], "value": [1.0]}, series=name)


@pytest.fixture
def ids(store: Any, sql: psycopg.Connection) -> dict[str, int]:
    fill(store, "A", "B")
    return dict(sql.execute("SELECT name, id FROM series").fetchall())


def ask(store: Any, how: str, series: str) -> Any:
    if how == "latest":
        return snapshot(store.latest("metrics", series, n=2))
    if how == "stream":
        return [snapshot(piece) for piece in store.stream("metrics", series, *DAY, rows=4)]
    return snapshot(store.read("metrics", series, *DAY, **READS[how]))


def raises(store: Any, how: str, series: str = "A") -> CorruptBlock:
    with pytest.raises(CorruptBlock) as caught:
        ask(store, how, series)
    error = caught.value
    assert (error.dataset, error.series) == ("metrics", series)
    assert f"dataset 'metrics', series '{series}', block {error.span}: " in str(error)
    return error


def parts(sql: psycopg.Connection, series: int) -> dict[str, bytes]:
    text = "SELECT _header, ts, value FROM metrics_blocks WHERE series_id = %s"
    (row,) = sql.execute(text, [series]).fetchall()
    return dict(zip(PARTS, row, strict=True))


def set_parts(sql: psycopg.Connection, series: int, values: dict[str, bytes]) -> None:
    each = ", ".join(f"{name} = %s" for name in values)
    text = f"UPDATE metrics_blocks SET {each} WHERE series_id = %s"
    assert sql.execute(text, [*values.values(), series]).rowcount == 1


@ON_ONE_VERSION
@pytest.mark.timeout(600)
def test_no_byte_of_a_block_can_change_unseen(
    store: Any, ids: dict[str, int], sql: psycopg.Connection
) -> None:
    hows = [*READS, "latest", "stream"]
    expected = {how: ask(store, how, "A") for how in hows}
    whole = parts(sql, ids["A"])
    flipped = 0
    for part, data in whole.items():
        for at in range(len(data)):
            broken = bytearray(data)
            broken[at] ^= 1 << (at % 8)
            set_parts(sql, ids["A"], {part: bytes(broken)})
            for how in hows:
                raises(store, how)
            (damage,) = store.verify("metrics").damaged
            assert damage.series == "A"
            flipped += 1
        set_parts(sql, ids["A"], {part: data})
    assert flipped == sum(map(len, whole.values())) > 250
    assert {how: ask(store, how, "A") for how in hows} == expected


def test_an_answer_out_of_headers_alone_is_right_or_none(
    store: Any, ids: dict[str, int], sql: psycopg.Connection
) -> None:
    store.recompress("metrics")
    bars = {"step": "1w", "strategy": "aggregated"}
    expected = snapshot(store.read("metrics", "A", *WEEK, **bars))
    whole = parts(sql, ids["A"])
    for part, data in whole.items():
        for at in range(len(data)):
            broken = bytearray(data)
            broken[at] ^= 1 << (at % 7)
            set_parts(sql, ids["A"], {part: bytes(broken)})
            try:
                said = snapshot(store.read("metrics", "A", *WEEK, **bars))
            except CorruptBlock as error:
                assert error.series == "A"  # noqa: PT017 - it need not be raised
            else:
                assert part != "_header"
                assert said == expected
        set_parts(sql, ids["A"], {part: data})


@pytest.mark.parametrize("part", PARTS)
def test_what_is_cut_short_or_goes_on_is_seen(
    store: Any, ids: dict[str, int], sql: psycopg.Connection, part: str
) -> None:
    whole = parts(sql, ids["A"])[part]
    for broken in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", whole * 2):
        set_parts(sql, ids["A"], {part: broken})
        if part == "_header" and broken[: len(whole)] == whole:
            continue  # what follows a whole header is not looked at
        for how in (*READS, "latest", "stream"):
            raises(store, how)
        assert [d.series for d in store.verify("metrics").damaged] == ["A"]


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (("value",), "column 'value': the checksum does not match"),
        (("_header",), "a block that belongs to "),
        (PARTS, "a block that belongs to "),
    ],
    ids=["a column", "a header", "whole"],
)
def test_what_is_swapped_between_series_is_seen(
    store: Any, ids: dict[str, int], sql: psycopg.Connection, taken: tuple[str, ...], said: str
) -> None:
    whole = {name: parts(sql, ids[name]) for name in "AB"}
    for mine, other in ("AB", "BA"):
        set_parts(sql, ids[mine], {n: whole[other][n] for n in taken})
    for how in (*READS, "latest", "stream"):
        for series in "AB":
            assert said in str(raises(store, how, series))
    report = store.verify("metrics")
    assert [d.series for d in report.damaged] == ["A", "B"]
    assert all(d.problems[0].startswith(said) for d in report.damaged)
    assert store.verify("metrics", "B").damaged == report.damaged[1:]


def test_columns_of_one_block_that_are_swapped_are_seen(
    store: Any, sql: psycopg.Connection
) -> None:
    ts = [FIRST + timedelta(minutes=n) for n in range(50)]
    prices = {n: np.random.default_rng(n).normal(size=50) for n in range(2)}
    frame = {"ts": ts, "open": prices[0], "close": prices[1], "high": prices[0] + 3}
    store.write("candles", {**frame, "low": prices[0], "volume": prices[1]}, series="A")
    store.compress("candles", end="2024-04-01Z")
    sql.execute("UPDATE candles_blocks SET open = close, close = open")
    with pytest.raises(CorruptBlock, match="column 'open': the checksum does not match"):
        store.read("candles", "A", *DAY)
    (damage,) = store.verify("candles").damaged
    assert damage.columns == ("ts", "high", "low", "volume")
    # who does not ask for them is not disturbed
    assert len(store.read("candles", "A", *DAY, columns=["high"])) == 50


# -- what the table says of blocks, and what only a wrong writer could make ---------------------


def put(
    sql: psycopg.Connection,
    series: int,
    lo: datetime,
    hi: datetime,
    minutes: list[int],
    least: float | None = None,
) -> None:
    """Store a block made by hand; ``least``: the minimum that its header claims."""
    ts = np.array([to_us(lo) + 60_000_000 * n for n in minutes])
    stamp = identity("metrics", series, to_us(lo), to_us(hi))
    values = np.arange(len(ts)) * 1.5
    header, stored = encode_parts(ts, {"value": values}, {}, stamp=stamp)
    if least is not None:
        said = read_header(header)
        time, value = said.columns
        assert value.states is not None
        value = value._replace(states=value.states._replace(min=least))
        header = pack_header(said.rows, stamp, [time, value])
    ends = [min(max(lo + timedelta(minutes=m), lo), hi - timedelta(minutes=1)) for m in minutes]
    sql.execute(
        "INSERT INTO metrics_blocks (series_id, lo, hi, _rows, _first, _last, _header, ts, value) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [series, lo, hi, len(ts), min(ends), max(ends), header, *stored],
    )


def test_one_pass_finds_everything(store: Any, sql: psycopg.Connection) -> None:
    names = [f"s{n:02}" for n in range(24)]
    fill(store, *names)
    ids = dict(sql.execute("SELECT name, id FROM series").fetchall())
    whole = parts(sql, ids["s03"])
    set_parts(sql, ids["s01"], {"value": parts(sql, ids["s02"])["value"]})
    set_parts(sql, ids["s04"], {"_header": whole["_header"]})
    set_parts(sql, ids["s05"], {"ts": b""})
    row = "UPDATE metrics_blocks SET {} WHERE series_id = %s"
    sql.execute(row.format("_rows = 15"), [ids["s06"]])
    sql.execute(row.format("_first = _first + interval '1 s'"), [ids["s07"]])
    for name, minutes, least in (
        ("s08", [5, 4, 6], None),
        ("s09", [4, 4, 6], None),
        ("s10", [-3, 4, 5], None),
        ("s11", [3, 4, 60], None),
        ("s12", [1, 2, 3], -9.0),
        ("s13", [1, 2, 3], None),
    ):
        sql.execute("DELETE FROM metrics_blocks WHERE series_id = %s", [ids[name]])
        put(sql, ids[name], FIRST, FIRST + timedelta(hours=1), minutes, least)
    put(sql, ids["s14"], FIRST, FIRST + timedelta(days=6), [0, 8_000])  # over the block of fill
    sql.execute("DELETE FROM metrics_blocks WHERE series_id = %s", [ids["s15"]])
    put(sql, ids["s15"], FIRST, FIRST + timedelta(days=9), [0, 1])
    put(sql, 9_999, FIRST, FIRST + timedelta(hours=1), [0, 1])
    seen: list[tuple[int, int]] = []
    report = store.verify("metrics", on_progress=lambda r, total: seen.append((r.blocks, total)))
    expected = {
        "s01": "column 'value': the checksum does not match",
        "s04": f"a block that belongs to 'metrics {ids['s03']} ",
        "s05": "column 'ts': the checksum does not match",
        "s06": "_rows says 15 points, the header 16",
        "s07": "_first and _last are not those of its times, 2024-03-04T09:30Z, ",
        "s08": "its keys do not ascend",
        "s09": "its keys do not ascend",
        "s10": "it has times outside its span, 2024-03-04T09:27Z to 2024-03-04T09:35Z",
        "s11": "it has times outside its span, 2024-03-04T09:33Z to 2024-03-04T10:30Z",
        "s12": "column 'value': the header's states are not those of its values",
        "s14": "an earlier block of the series reaches into its span",
        "s15": "its span reaches beyond its partition, where readers do not look for it",
        "9999": "there is no series with the id 9999",
    }
    found = {d.series: " ".join(d.problems) for d in report.damaged}
    assert set(found) == set(expected)
    assert all(expected[name] in found[name] for name in found), found
    assert seen[-1] == (report.blocks, report.blocks)
    assert report.blocks == blocks_of(sql, "metrics") == 26
    sql.execute("UPDATE dataset SET cold_to = %s WHERE name = 'metrics'", [FIRST])
    later = store.verify("metrics", "s13").damaged
    assert [d.series for d in later] == ["s13"]
    assert "at or after dataset.cold_to" in later[0].problems[0]


def damage_page(store: Any, sql: psycopg.Connection, database: Database) -> None:
    """Make a block each of A, B and C, and take a chunk of one from the server."""
    random = np.random.default_rng(1)
    for name in "ABC":
        ts = np.datetime64("2024-03-04", "us") + np.arange(3_000) * np.timedelta64(1, "s")
        store.write("metrics", {"ts": ts, "value": random.normal(size=3_000)}, series=name)
    store.compress("metrics", end="2024-04-01Z")
    (partition,) = sql.execute(
        "SELECT tableoid::regclass::text FROM metrics_blocks LIMIT 1"
    ).fetchall()
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION pg_surgery")
        admin.execute("SET search_path = toolkit, public")
        (toast,) = admin.execute(
            "SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = %s::regclass", partition
        ).fetchall()
        (chunk,) = admin.execute(  # of one of them
            f"SELECT ctid FROM {toast[0]} WHERE chunk_id = "
            f"(SELECT chunk_id FROM {toast[0]} GROUP BY 1 ORDER BY 1 OFFSET 1 LIMIT 1) LIMIT 1"
        ).fetchall()
        admin.execute(
            "SELECT heap_force_kill(%s::regclass, ARRAY[%s]::tid[])", [toast[0], chunk[0]]
        )


def test_what_the_server_cannot_read_itself_is_found(
    store: Any, sql: psycopg.Connection, database: Database
) -> None:
    damage_page(store, sql, database)
    (damage,) = store.verify("metrics").damaged
    assert "chunk" in damage.problems[0]
    assert damage.columns == ("ts",)
    assert store.verify("metrics").blocks == 3


@pytest.mark.parametrize("when", ["before it alone is read", "before its columns are"])
def test_what_the_server_cannot_read_and_has_gone_meanwhile_is_no_damage(
    blocking: Any,
    sql: psycopg.Connection,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    damage_page(blocking, sql, database)
    (damage,) = blocking.verify("metrics").damaged
    (bad,) = [s.id for s in blocking.series("metrics") if s.name == damage.series]
    fetch = Verifier._fetch

    async def meanwhile(self: Any, entry: Any, part: str, columns: Any, params: Any) -> Any:
        rows = await fetch(self, entry, part, columns, params)
        if columns or rows[0][0] != bad:
            return rows
        if when == "before its columns are":  # the next block is there in its place, if any
            sql.execute("DELETE FROM metrics_blocks WHERE series_id = %s", [bad])
            return rows
        sql.execute("DELETE FROM metrics_blocks WHERE series_id >= %s", [bad])
        return await fetch(self, entry, part, columns, params)

    monkeypatch.setattr(Verifier, "_fetch", meanwhile)
    report = blocking.verify("metrics")
    left = sql.execute("SELECT count(*) FROM metrics_blocks").fetchone()
    assert (report.damaged, (report.blocks,)) == ((), left)


# -- what can be done ---------------------------------------------------------------------------


def test_verify_says_what_is_left_of_a_block(
    store: Any, ids: dict[str, int], sql: psycopg.Connection
) -> None:
    store.refresh("metrics")
    assert store.verify("metrics").damaged == ()
    set_parts(sql, ids["A"], {"value": b"x"})
    (damage,) = store.verify("metrics").damaged
    assert damage.columns == ("ts",)
    assert damage.late_rows == 1
    assert damage.bars is not None
    assert set(damage.bars) == {"5m", "1h", "1d"}
    assert "late points in its span are rows (1), and whole" in damage.remedy
    assert "rollups hold its bars (17 of 5m, 3 of 1h, 1 of 1d)" in damage.remedy
    assert damage.remedy.endswith("from loading its span again once it is deleted")
    error = raises(store, "direct")
    assert error.span == damage.span
    assert store.verify("metrics", None, "2024-03-11Z", "2024-04-01Z").blocks == 0


def test_a_damaged_block_is_deleted_and_its_span_loaded_again(
    store: Any, ids: dict[str, int], sql: psycopg.Connection
) -> None:
    expected = {how: ask(store, how, "A") for how in READS}
    again = store.read("metrics", "A", *DAY)
    frame = {"ts": again.ts, "value": again["value"]}
    set_parts(sql, ids["A"], {"ts": b"x"})
    (damage,) = store.verify("metrics").damaged
    sql.execute(
        "DELETE FROM metrics_blocks AS b USING series AS s "
        "WHERE s.id = b.series_id AND s.name = 'A' AND b.lo = %s",
        [datetime.fromtimestamp(damage.span.start / 1e6, UTC)],
    )
    store.write("metrics", frame, series="A")
    assert {how: ask(store, how, "A") for how in READS} == expected
    store.compress("metrics", end="2024-04-01Z")
    assert store.verify("metrics").damaged == ()
    assert {how: ask(store, how, "A") for how in READS} == expected


def test_a_block_of_which_only_the_row_is_wrong_comes_back_by_decompressing(
    store: Any, ids: dict[str, int], sql: psycopg.Connection
) -> None:
    expected = {how: ask(store, how, "A") for how in READS}
    sql.execute("UPDATE metrics_blocks SET _rows = 3 WHERE series_id = %s", [ids["A"]])
    (damage,) = store.verify("metrics").damaged
    assert damage.is_readable
    assert "toolkit decompress makes rows of them" in damage.remedy
    store.decompress("metrics", "A")
    store.compress("metrics", end="2024-04-01Z")
    assert store.verify("metrics").damaged == ()
    assert {how: ask(store, how, "A") for how in READS} == expected


def test_blocks_that_come_and_go_meanwhile_are_not_taken_for_damaged(
    store: Any, other_store: Any, database: Database
) -> None:
    create(database, READINGS)
    store.write("readings", frame(READINGS, 12_000), series="A")
    store.write("readings", frame(READINGS, 3_000, 2), series="B")
    is_over = Event()

    def churn(other: Any) -> int:
        points = 0
        while not is_over.is_set():
            points += other.compress("readings", end=MIDDLE).points
            points += other.compress("readings", end=CLOSED).points
            points += other.decompress("readings", None, "2024-01-23Z", "2024-01-28Z").points
            other.write("readings", frame(READINGS, 900, points), series="A")
            points += other.recompress("readings").points
        return points

    with other_store() as other, ThreadPoolExecutor(1) as pool:
        moved = pool.submit(churn, other)
        try:
            until, looked = time.monotonic() + 4, 0
            while time.monotonic() < until and not moved.done():
                report = store.verify("readings")
                assert report.damaged == ()
                looked += report.blocks
        finally:
            is_over.set()
        assert moved.result() > 15_000
    assert looked > 0
