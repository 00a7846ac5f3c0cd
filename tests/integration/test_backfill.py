"""Points that go straight into blocks: what is there then, whatever was there before."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_servers import Database, share
from fix_stores import COLOURS, READINGS, cached, create, one, open_store
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import Points, Question, answer, differences
from points import ANCHORS, EARLIEST, LATEST, asked, batches, changed, frame_of

import toolkit
from toolkit import BackfillReport, cutting, filling
from toolkit.dataset import CANDLES, Aggregate, Column, Dataset
from toolkit.errors import InputError, PartialWrite, QueryError, UnknownName

# a thread of the connection pool may roll its dice while a value is drawn
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

ALWAYS = ("1900-01-01T00:00Z", "2100-01-01T00:00Z")
MINUTE = np.timedelta64(60, "s")
START = np.datetime64("2024-01-22", "us")  # a Monday, where a partition of metrics begins
REACH = 10**13  # µs: what is drawn around an anchor lies in it
COUNT = 30_000  # minutes: from January to February, in blocks of some thousand
GROUNDS = ("empty", "rows", "blocks", "half and half", "late rows over blocks")
BY_WRITER = Dataset(
    "ticks",
    (Column("value"),),
    (Aggregate("last", "last", ("value",)),),
    ladder=("5m",),
    changelog="writer",
)


def minutes(count: int = COUNT, first: int = 0, step: int = 1, value: float = 0.0) -> Any:
    at = np.arange(first, first + count * step, step)
    return {"ts": START + at * MINUTE, "value": at + value}


def values(store: Any, series: str = "a", dataset: str = "metrics") -> dict[Any, float]:
    cols = store.read(dataset, series, *ALWAYS)
    assert (np.diff(cols.instants) > 0).all()
    return dict(zip(cols.ts.tolist(), cols["value"].tolist(), strict=True))


def of(*frames: Any) -> dict[Any, float]:
    """What is there after frames were stored one after the other."""
    found: dict[Any, float] = {}
    for frame in frames:
        found |= dict(zip(frame["ts"].tolist(), frame["value"].tolist(), strict=True))
    return dict(sorted(found.items()))


def counts(report: BackfillReport) -> tuple[int, int, int, int]:
    return report.received, report.inserted, report.updated, report.unchanged


def prepare(store: Any, ground: str) -> dict[Any, float]:
    """Lay out points of every other minute, and return them."""
    base = minutes(COUNT // 2, 0, 2)
    late = minutes(40, 10_001, 2, -0.5), minutes(500, 20_000, 2, -0.25)
    if ground == "empty":
        return {}
    if ground == "rows":
        store.write("metrics", base, series="a")
    elif ground == "half and half":
        for half, put in ((slice(None, 7_000), store.backfill), (slice(7_000, None), store.write)):
            put("metrics", {k: v[half] for k, v in base.items()}, series="a")
    else:
        store.backfill("metrics", base, series="a")
    if ground != "late rows over blocks":
        return of(base)
    for frame in late:
        store.write("metrics", frame, series="a")
    return of(base, *late)


# -- what is there already ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["replace", "keep"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_the_policy_decides_about_every_key_that_is_there(
    store: Any, sql: psycopg.Connection, other_store: Any, ground: str, policy: str
) -> None:
    there, frame = prepare(store, ground), minutes(20_000, 5_000, value=0.75)
    new = of(frame)
    known = len(there.keys() & new.keys())
    logged = one(sql, "SELECT count(*) FROM metrics_log")
    report = store.backfill("metrics", frame, series="a", policy=policy)
    expected = there | new if policy == "replace" else new | there
    is_kept = policy == "keep"
    assert counts(report) == (20_000, 20_000 - known, 0 if is_kept else known, 0)
    assert report.rejected == ({"the key exists": known} if known and is_kept else {})
    assert values(store) == dict(sorted(expected.items()))
    assert one(sql, "SELECT count(*) FROM metrics_log") > logged
    with other_store() as other:
        assert values(other) == values(store)
        step = {"step": "5m", "columns": ["value_sum", "value_count"]}
        other.refresh("metrics")
        bars = [other.read("metrics", "a", *ALWAYS, strategy=s, **step) for s in ("auto", "direct")]
        assert len(bars[0]) == len({t.replace(minute=t.minute // 5 * 5) for t in expected})
        for column in step["columns"]:
            assert bars[0][column].tolist() == bars[1][column].tolist()


@pytest.mark.parametrize("policy", ["replace", "keep"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_the_same_again_changes_nothing(
    store: Any, sql: psycopg.Connection, ground: str, policy: str
) -> None:
    prepare(store, ground)
    frame = minutes(20_000, 5_000, value=0.75)
    store.backfill("metrics", frame, series="a", policy=policy)
    tables = ("metrics", "metrics_blocks", "metrics_log")
    before = [sql.execute(f"SELECT ctid, * FROM {t} ORDER BY 1").fetchall() for t in tables]
    report = store.backfill("metrics", frame, series="a", policy=policy)
    assert (report.inserted, report.updated, report.blocks) == (0, 0, 0)
    assert report.unchanged + sum(report.rejected.values()) == 20_000
    after = [sql.execute(f"SELECT ctid, * FROM {t} ORDER BY 1").fetchall() for t in tables]
    assert before == after


@pytest.mark.parametrize("ground", GROUNDS[1:])
def test_fail_names_the_first_key_that_is_there_and_stores_nothing(
    store: Any, sql: psycopg.Connection, ground: str
) -> None:
    there = prepare(store, ground)
    frame = minutes(20_000, 9_999, value=0.75)
    with pytest.raises(InputError, match=r"series 'a' has a point at 2024-01-28T22:40Z"):
        store.backfill("metrics", frame, series="a", policy="fail")
    assert values(store) == there
    gap = minutes(5_000, 12_000, 2, 0.75)
    gap["ts"] = gap["ts"] + np.timedelta64(1, "s")
    report = store.backfill("metrics", gap, series="a", policy="fail")
    assert counts(report) == (5_000, 5_000, 0, 0)
    assert values(store) == dict(sorted((there | of(gap)).items()))
    assert one(sql, "SELECT count(*) FROM metrics_blocks") > 0


def test_columns_that_the_frame_lacks_stay_as_they_are(store: Any) -> None:
    ts = START + np.arange(5) * MINUTE
    full = {n: np.arange(5.0) for n in CANDLES.names}
    store.backfill("candles", {"ts": ts, **full}, series="a")
    part = {"ts": ts[3:] + np.array([0, 1]) * MINUTE, "close": [9.0, 9.0]}
    assert counts(store.backfill("candles", part, series="a")) == (2, 1, 1, 0)
    cols = store.read("candles", "a", *ALWAYS)
    assert cols["close"].tolist() == [0.0, 1.0, 2.0, 9.0, 4.0, 9.0]
    assert cols["open"].tolist()[:5] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert np.isnan(cols["open"][5])


# -- against a model ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3, 16_384])
@pytest.mark.parametrize("dataset", [READINGS, CANDLES], ids=lambda d: d.name)
def test_whatever_is_stored_in_whatever_way_reads_as_the_model_says(
    stores: Any, dataset: Dataset, target: int, server_version: str, monkeypatch: Any
) -> None:
    for module in (cutting, filling):
        monkeypatch.setattr(module, "TARGET", target)
    examples = settings.default.max_examples
    numbers = iter(range(1_000_000))

    @settings(
        max_examples=share(examples // 2, server_version),
        phases=set(Phase) - {Phase.explain},
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        anchor, prefix = data.draw(st.sampled_from(ANCHORS)), f"s{next(numbers)}"
        points: Points = {(f"{prefix}a", anchor, 0): dict.fromkeys(dataset.names)}
        stores[0].write(dataset.name, frame_of(points, dataset))
        acts = st.sampled_from(["write", "replace", "keep", "compress", "refresh"])
        for number in range(data.draw(st.integers(1, 6), "acts")):
            act, store = data.draw(acts), stores[number % 2]
            if act == "compress":
                store.compress(dataset.name, list({k[0] for k in points}), end=ALWAYS[1])
                continue
            if act == "refresh":
                store.refresh(dataset.name)
                continue
            drawn = data.draw(batches(dataset, anchor, ["a", "b"]))
            batch = {(prefix + k[0], *k[1:]): v for k, v in drawn.items()}
            again = data.draw(st.lists(st.sampled_from(sorted(points)), max_size=3))
            batch |= {k: changed(points[k]) for k in again}
            if not batch:
                continue
            if act == "write":
                store.write(dataset.name, frame_of(batch, dataset))
            else:
                keys = data.draw(st.permutations(list(batch)))
                size = data.draw(st.integers(1, len(keys)))
                chunks = [keys[i : i + size] for i in range(0, len(keys), size)]
                frames = (frame_of({k: batch[k] for k in c}, dataset) for c in chunks)
                report = store.backfill(dataset.name, frames, policy=act)
                assert report.received == len(batch)
                assert report.inserted == len(batch.keys() - points.keys())
            points |= (
                batch if act != "keep" else {k: batch[k] for k in batch.keys() - points.keys()}
            )
            names = tuple(sorted({k[0] for k in points}))
            low, high = max(anchor - REACH, EARLIEST), min(anchor + REACH, LATEST)
            step = data.draw(st.sampled_from([None, "15m"]), "step")
            question = Question(names, low, high, step)
            expected, options = answer(points, question, dataset), asked(question, dataset)
            cols = store.read(dataset.name, names, freshness="strong", **options)
            wrong = differences(expected, cols, dataset)
            assert not wrong, (act, step, cols.plan, wrong)

    run()


# -- frames and chunks ----------------------------------------------------------------------------


def test_an_unordered_frame_with_equal_keys_is_ordered_and_the_last_wins(store: Any) -> None:
    frame = minutes(3_000)
    order = np.random.default_rng(1).permutation(3_000)
    mixed = {k: np.append(v[order], v[:10]) for k, v in frame.items()}
    mixed["value"][-10:] += 0.5
    report = store.backfill("metrics", mixed, series="a")
    assert counts(report) == (3_010, 3_000, 0, 0)
    assert report.rejected == {"an equal key came later in the batch": 10}
    first = {k: v[:10] for k, v in frame.items()}
    assert values(store) == of(frame, first | {"value": first["value"] + 0.5})


@pytest.mark.parametrize("size", [997, 20_011])
def test_chunks_of_an_odd_size_leave_no_small_blocks(
    store: Any, sql: psycopg.Connection, size: int
) -> None:
    frame, heard = minutes(), []
    chunks = ({k: v[i : i + size] for k, v in frame.items()} for i in range(0, COUNT, size))
    report = store.backfill("metrics", chunks, series="a", on_chunk=heard.append)
    assert counts(report) == (COUNT, COUNT, 0, 0)
    assert [r.chunks for r in heard] == list(range(1, -(-COUNT // size) + 1))
    assert values(store) == of(frame)
    assert one(sql, "SELECT count(*) FROM metrics") == 0
    sizes = [r[0] for r in sql.execute("SELECT _rows FROM metrics_blocks ORDER BY lo")]
    assert sum(sizes) == COUNT
    together = [a + b for a, b in pairwise(sizes)]
    partitions = len(store.partitions("metrics"))
    assert sum(t <= cutting.TARGET for t in together) < partitions


def test_an_asynchronous_iterator_is_taken_by_the_store_that_can(database: Database) -> None:
    async def frames() -> AsyncIterator[Any]:
        for first in (0, 1_000):
            yield minutes(1_000, first)

    with open_store("asyncio", database.dsn) as store:
        assert store.backfill("metrics", frames(), series="a").inserted == 2_000
        assert values(store) == of(minutes(2_000))
    with toolkit.connect(database.dsn) as store, pytest.raises(InputError, match="connect_async"):
        store.backfill("metrics", frames(), series="a")


def test_a_later_chunk_that_is_refused_leaves_the_chunks_before_it(store: Any) -> None:
    good, bad = minutes(1_000), minutes(10, 1_000) | {"value": ["x"] * 10}
    with pytest.raises(PartialWrite, match="the chunk before it, 1,000 rows, is stored") as caught:
        store.backfill("metrics", iter([good, bad, minutes(10, 5_000)]), series="a")
    assert caught.value.report.inserted == 1_000
    assert values(store) == of(good)


def test_many_series_and_partitions_go_together(store: Any, sql: psycopg.Connection) -> None:
    names = [f"s{n}" for n in range(70)]  # more than there are locks
    ts = START + np.arange(40) * np.timedelta64(36, "h")
    frame = {
        "series": np.repeat(names, 40),
        "ts": np.tile(ts, 70),
        "value": np.arange(2_800.0),
    }
    assert counts(store.backfill("metrics", frame)) == (2_800, 2_800, 0, 0)
    cols = store.read("metrics", names, *ALWAYS)
    found = {n: cols["value"][cols.series == i].tolist() for i, n in enumerate(cols.names)}
    expected = {n: list(map(float, range(40 * i, 40 * i + 40))) for i, n in enumerate(names)}
    assert found == expected
    blocks, partitions = "metrics_blocks", len(store.partitions("metrics"))
    assert partitions > 5
    assert one(sql, f"SELECT count(DISTINCT tableoid) FROM {blocks}") == partitions
    assert store.backfill("metrics", frame).unchanged == 2_800


def test_points_of_one_instant_are_numbered_over_chunks(store: Any) -> None:
    ts = START + np.repeat(np.arange(4), 5) * MINUTE
    sides = np.where(np.arange(20) % 3, "buy", "sell")
    frame = {"ts": ts, "price": np.arange(20.0), "size": np.ones(20), "side": sides}
    for unchanged in (0, 20):  # the same again has the same keys
        chunks = ({k: v[i : i + 7] for k, v in frame.items()} for i in range(0, 20, 7))
        assert store.backfill("trades", chunks, series="a").unchanged == unchanged
        cols = store.read("trades", "a", *ALWAYS)
        assert cols["price"].tolist() == frame["price"].tolist()


@pytest.mark.parametrize(
    ("frame", "options", "error", "said"),
    [
        (minutes(5) | {"nonsense": np.ones(5)}, {}, InputError, "nonsense"),
        ({"ts": minutes(5)["ts"]}, {}, InputError, "none of the columns"),
        ({"ts": [START, np.datetime64("3024-01-01")], "value": [1.0, 2.0]}, {}, InputError, "3024"),
        ({"ts": ["2024-01-01 10:00"], "value": [1.0]}, {}, InputError, "zone"),
        (minutes(5), {"policy": "upsert"}, QueryError, "replace, keep, fail"),
        (minutes(5), {"mapping": {"nix": "value"}}, InputError, "nix"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_stored(
    store: Any, sql: psycopg.Connection, frame: Any, options: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        store.backfill("metrics", frame, series="a", **options)
    assert one(sql, "SELECT count(*) FROM metrics_blocks") == 0
    with pytest.raises(UnknownName):
        store.read("metrics", "a", *ALWAYS)


def test_an_unknown_dataset_is_said_with_the_known_ones(store: Any) -> None:
    with pytest.raises(UnknownName, match="metrics"):
        store.backfill("nix", minutes(5), series="a")


def test_an_empty_frame_is_no_work(store: Any) -> None:
    assert counts(store.backfill("metrics", minutes(0), series="a")) == (0, 0, 0, 0)
    assert counts(store.backfill("metrics", iter([]), series="a")) == (0, 0, 0, 0)


# -- what else hears of it ------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_a_store_that_remembers_sees_it_at_once(database: Database, colour: str) -> None:
    kept = cached(database.dsn)
    with open_store(colour, kept) as store, open_store("blocking", kept) as other:
        base = minutes(2_000)
        store.write("metrics", base, series="a")
        for reader in (store, other):
            assert values(reader) == values(reader) == of(base)
        fix = minutes(100, 500, 3, 0.5)
        store.backfill("metrics", fix, series="a")
        assert values(store) == of(base, fix)
        span = ("metrics", "a", *ALWAYS)
        strong = other.read(*span, freshness="strong")["value"].tolist()
        assert strong == list(of(base, fix).values())


def test_a_change_log_by_the_writer_hears_of_it_too(database: Database, store: Any) -> None:
    create(database, BY_WRITER)
    store.backfill("ticks", minutes(5_000), series="a")
    store.refresh("ticks")
    store.backfill("ticks", minutes(50, 1_000, value=0.5), series="a")
    expected = of(minutes(5_000), minutes(50, 1_000, value=0.5))
    assert values(store, dataset="ticks") == expected
    bars = store.read("ticks", "a", *ALWAYS, step="5m")["last"].tolist()
    assert bars == list(expected.values())[4::5]


def test_a_dataset_made_anew_meanwhile_is_found(
    database: Database, store: Any, other_store: Callable[[], AbstractContextManager[Any]]
) -> None:
    create(database, BY_WRITER)
    store.backfill("ticks", minutes(50), series="a")
    with psycopg.connect(database.dsn) as connection:
        for statement in toolkit.ddl.drop_dataset(BY_WRITER, "toolkit"):
            connection.execute(statement)
    create(database, BY_WRITER)
    store.backfill("ticks", minutes(70), series="a")
    with other_store() as other:
        assert values(other, dataset="ticks") == of(minutes(70))


def test_partitions_that_others_drop_are_made_again(store: Any, other_store: Any) -> None:
    store.backfill("metrics", minutes(100), series="a")
    with other_store() as other:
        other.drop_partitions("metrics", *ALWAYS)
    more = minutes(100, 1_000)
    assert store.backfill("metrics", more, series="a").inserted == 100
    assert of(more).items() <= values(store).items()


def test_reads_while_it_runs_see_whole_spans(
    store: Any, other_store: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Every version of the points is one number: a span is seen in one of them only."""
    is_over, wrong = threading.Event(), []
    base = minutes(9_000)
    base["value"][:] = 0.0
    store.backfill("metrics", base, series="a")

    def look() -> None:
        with other_store() as other:
            while not is_over.is_set():
                cols = other.read("metrics", "a", *ALWAYS, cache=False)
                found = set(cols["value"].tolist())
                if len(cols) != 9_000 or len(found) != 1:
                    wrong.append((len(cols), found))

    checker = threading.Thread(target=look)
    checker.start()
    try:
        for version in range(1, 26):
            base["value"][:] = version
            assert store.backfill("metrics", base, series="a").updated == 9_000
            if version % 5 == 0:
                assert store.write("metrics", base, series="a")
    finally:
        is_over.set()
        checker.join()
    assert not wrong, wrong[:5]
