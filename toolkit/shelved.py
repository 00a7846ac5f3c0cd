"""What lies in the second tier, looked at and dropped by hand."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toolkit import blocks
from toolkit.blocks import DamagedBlock
from toolkit.cache import Key, Level, level_of_points, level_of_rollup
from toolkit.catalog import Entry, Series
from toolkit.drivers import Driver, Params
from toolkit.errors import QueryError, Unavailable
from toolkit.follower import NOTHING, following
from toolkit.shared import CURSOR_MS, FORMAT, LEASE, Cursor, Shared, Tier, read_stamp
from toolkit.timegrid import SECOND, Span

if TYPE_CHECKING:
    from toolkit.drivers.shelf import Facts, Shelf

_TRIES = 50  # to move a cursor that others move, too
_AT_ONCE = 100  # spans that are looked into at a time
_MOST_SPANS = 2_000  # of one level that a peek looks for
_MOST_CHANGES = 5_000


@dataclass(frozen=True, slots=True)
class SpanShared:
    """A span that is there: its rows up to ``upto``, bytes of Redis, and seconds it has left."""

    start: int
    upto: int
    rows: int
    bytes: int
    life_s: float


@dataclass(frozen=True, slots=True)
class LevelShared:
    """What there is of a series at one level in a range, and the ranges of what there is not."""

    level: str
    found: tuple[SpanShared, ...]
    missing: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class LevelCount:
    """How much there is of a dataset at one level, in spans of ``length_s``."""

    level: str
    length_s: int
    spans: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DatasetShared:
    """How much there is of a dataset, and how far its changes have been followed.

    ``moved_s`` is how many seconds ago the cursor was moved, ``behind`` how many changed ranges
    the change log has had since (at most 5,000; None: it was cut, and the next look begins
    anew). Both are None where there is no cursor. ``outdated`` counts spans that nobody finds
    any more: they leave when their life ends.
    """

    dataset: str
    levels: tuple[LevelCount, ...]
    outdated: LevelCount
    moved_s: float | None
    behind: int | None

    @property
    def spans(self) -> int:
        """The spans that can be found."""
        return sum(level.spans for level in self.levels)

    @property
    def bytes(self) -> int:
        """The bytes of Redis that they take."""
        return sum(level.bytes for level in self.levels)


@dataclass(frozen=True, slots=True)
class ShelfReport:
    """A Redis or Valkey, and what there is of each dataset.

    ``others`` counts the spans of other databases and schemas, or of this one before its server
    was restarted. Without ``is_whole`` the time was over before every key was seen.
    """

    where: str
    server: Facts
    datasets: tuple[DatasetShared, ...]
    others: LevelCount
    is_whole: bool

    @property
    def warnings(self) -> list[str]:
        """What its settings have against a cache, a sentence each."""
        found = []
        if self.server.policy == "noeviction":
            found.append(
                "maxmemory-policy is noeviction: a server that is full takes nothing new; "
                "allkeys-lru throws out what is used least"
            )
        if not self.server.max_memory:
            found.append("maxmemory is 0: nothing limits what it takes of the machine's memory")
        if self.server.is_persistent:
            found.append(
                "it writes what it holds to disk, which a cache has no need of: "
                'save "" and appendonly no'
            )
        return found


def out(shelf: Shelf, what: str) -> Unavailable:
    """Return the error of a Redis that gave no answer to somebody who asks by hand."""
    return Unavailable(f"{shelf.state}: {what}; see whether it runs, and cache.redis")


# -- dropping ----------------------------------------------------------------------------------


async def forget(
    shared: Shared, tier: Tier, entry: Entry, series: Collection[int] | None, span: Span
) -> int:
    """Delete the spans of series in a range, None for all there is; return how many there were.

    The cursor gets a new serial first, so that whoever fetched before cannot store it any more;
    what is stored from then on was fetched later. Raises Unavailable: some may still be there.
    """
    shelf = shared.shelf
    was = await _moved(shared, tier, entry, is_all=series is None)
    if was is None:
        return 0
    keys = None
    if series is not None:
        changes = [(i, span.start, span.end) for i in series]
        keys = shared.keys(tier, entry, was, changes)
    dropped = 0
    async with aclosing(_pieces(shelf, tier, was, series, span, keys)) as pieces:
        async for piece in pieces:
            count = await shelf.drop(piece) if piece is not None else None
            if count is None:
                raise out(shelf, _not_dropped(entry))
            dropped += count
            shared.dropped += count
    return dropped


async def _moved(shared: Shared, tier: Tier, entry: Entry, *, is_all: bool) -> Cursor | None:
    """Move the cursor, to a new epoch if all is to go; return what it was, if it was there."""
    shelf = shared.shelf
    for _ in range(_TRIES):
        looked = await shelf.look(tier.cursor_key, ())
        if looked is None:
            break
        was = Cursor.read(looked.cursor, tier.base)
        if was is None:
            return None
        is_known = tier.cursor == was
        now = Cursor.begin(was.snapshot) if is_all else replace(was, serial=was.serial + 1)
        moved = await shelf.advance(
            tier.cursor_key, was.said(tier.base), now.said(tier.base), [], CURSOR_MS
        )
        if moved is None:
            break
        if moved:
            if is_known and tier.cursor == was:
                tier.cursor = now
            return was
    raise out(shelf, _not_dropped(entry))


async def _pieces(
    shelf: Shelf,
    tier: Tier,
    cursor: Cursor,
    series: Collection[int] | None,
    span: Span,
    keys: Sequence[str] | None,
) -> AsyncGenerator[list[str] | None]:
    """Yield the keys that are to go: those given, else those there are; None if Redis is lost."""
    if keys is not None:
        yield list(keys)
        return
    pattern = f"{tier.base}:*" if series is None else f"{tier.base}:{cursor.epoch}:*"
    wanted = frozenset(series or ())
    place = b"0"
    while (page := await shelf.page(place, pattern)) is not None:
        place, found = page
        named = [(key, name) for key in found if (name := _Name.read(key)) is not None]
        yield [k for k, n in named if series is None or (n.series in wanted and n.meets(span))]
        if place == b"0":
            return
    yield None


def _not_dropped(entry: Entry) -> str:
    return (
        f"what it holds of {entry.dataset.name} was not dropped, or not all; "
        "do it again when it is back"
    )


@dataclass(frozen=True, slots=True)
class _Name:
    """What the key of a span says."""

    base: str
    epoch: str
    level: str
    length: int
    series: int
    start: int

    @classmethod
    def read(cls, key: str) -> _Name | None:
        """Return what a key says; None if it is no span's.

        >>> _Name.read("tk1:ab:cd:points:600:7:-1200").start, _Name.read("tk1:ab:cursor")
        (-1200, None)
        """
        words = key.split(":")
        try:
            form, place, epoch, level, length, series, start = words
            if epoch == LEASE:
                return None
            return cls(f"{form}:{place}", epoch, level, int(length), int(series), int(start))
        except ValueError:
            return None

    def meets(self, span: Span) -> bool:
        """Tell whether it holds any of a range."""
        return self.start < span.end and self.start + self.length > span.start


# -- looking -----------------------------------------------------------------------------------


async def report(
    driver: Driver, shared: Shared, entries: Iterable[Entry], seconds: float
) -> ShelfReport:
    """Count what there is of every dataset, for at most so many seconds; moves no cursor."""
    shelf, until = shared.shelf, time.monotonic() + seconds
    facts = await shelf.info()
    if facts is None:
        raise out(shelf, "nothing can be said of it")
    places = [(entry, *await _place(driver, shared, entry)) for entry in entries]
    counts: dict[tuple[str, str, str, int], list[int]] = {}
    seen: set[str] = set()
    place, is_whole = b"0", False
    while not is_whole and time.monotonic() < until:
        page = await shelf.page(place, f"{FORMAT}:*")
        if page is None:
            raise out(shelf, "it was lost while its keys were counted")
        place, found = page
        fresh = {k: n for k in found if k not in seen and (n := _Name.read(k)) is not None}
        seen |= fresh.keys()
        sizes = await shelf.measure(list(fresh))
        if sizes is None:
            raise out(shelf, "it does not say how large its keys are")
        for name, (size, _) in zip(fresh.values(), sizes, strict=True):
            count = counts.setdefault((name.base, name.epoch, name.level, name.length), [0, 0])
            count[0] += 1
            count[1] += size
        is_whole = place == b"0"
    datasets = tuple([await _shared(driver, shelf, *where, counts) for where in places])
    bases = {tier.base for _, tier, _ in places}
    others = _sum(c for (base, *_), c in counts.items() if base not in bases)
    return ShelfReport(shelf.where, facts, datasets, others, is_whole)


async def _place(driver: Driver, shared: Shared, entry: Entry) -> tuple[Tier, Cursor | None]:
    """Return where a dataset's spans are, and their cursor."""
    rows = await _changes(driver, entry, NOTHING, 0)
    tier = shared.tier(entry, rows[0][1] if rows else "")
    looked = await shared.shelf.look(tier.cursor_key, ())
    if looked is None:
        raise out(shared.shelf, "nothing can be said of it")
    return tier, Cursor.read(looked.cursor, tier.base)


async def _changes(driver: Driver, entry: Entry, since: str, most: int) -> Sequence[Sequence[str]]:
    params: Params = {"dataset_id": entry.id, "since": since, "known": since, "most": most}
    return await driver.fetch(following(entry), params)


async def _shared(
    driver: Driver,
    shelf: Shelf,
    entry: Entry,
    tier: Tier,
    cursor: Cursor | None,
    counts: dict[tuple[str, str, str, int], list[int]],
) -> DatasetShared:
    mine = {k: c for k, c in counts.items() if k[0] == tier.base}
    epoch = cursor.epoch if cursor is not None else ""
    levels = [
        LevelCount(level, length // SECOND, *count)
        for (_, at, level, length), count in sorted(mine.items(), key=lambda item: item[0][3])
        if at == epoch
    ]
    levels.sort(key=lambda level: level.level != "points")
    outdated = _sum(c for k, c in mine.items() if k[1] != epoch)
    moved_s, behind = None, None
    if cursor is not None:
        lives = await shelf.measure([tier.cursor_key])
        if lives is None:
            raise out(shelf, "it does not say how old its keys are")
        moved_s = (CURSOR_MS - lives[0][1]) / 1000
        rows = await _changes(driver, entry, cursor.snapshot, _MOST_CHANGES)
        if rows and rows[0][2]:
            behind = sum(row[3] is not None for row in rows)
    return DatasetShared(entry.dataset.name, tuple(levels), outdated, moved_s, behind)


def _sum(counts: Iterable[list[int]]) -> LevelCount:
    found = list(counts)
    return LevelCount("", 0, sum(c[0] for c in found), sum(c[1] for c in found))


async def peek(
    driver: Driver, shared: Shared, entry: Entry, series: Series, span: Span
) -> tuple[LevelShared, ...]:
    """Say which spans of a series are there, level by level; moves no cursor."""
    levels = [level_of_points(entry, series.step)]
    levels += [level_of_rollup(entry, rollup) for rollup in entry.rollups]
    for level in levels:
        if span.width // level.length > _MOST_SPANS:
            raise QueryError(
                f"the range is more than {_MOST_SPANS:,} spans of {level.key[1]}; "
                "give a shorter one"
            )
    tier, cursor = await _place(driver, shared, entry)
    return tuple([await _peeked(shared.shelf, tier, cursor, lv, series.id, span) for lv in levels])


async def _peeked(
    shelf: Shelf, tier: Tier, cursor: Cursor | None, level: Level, series: int, span: Span
) -> LevelShared:
    starts = list(range(level.floor(span.start), span.end, level.length))
    found: list[SpanShared] = []
    for at in range(0, len(starts), _AT_ONCE) if cursor is not None else ():
        assert cursor is not None
        keys: list[Key] = [(level.key, series, s) for s in starts[at : at + _AT_ONCE]]
        names = [tier.key(key, cursor.epoch) for key in keys]
        looked, sizes = await shelf.look(tier.cursor_key, names), await shelf.measure(names)
        if looked is None or sizes is None:
            raise out(shelf, "nothing can be said of it")
        for key, name, value, (size, left_ms) in zip(
            keys, names, looked.values, sizes, strict=True
        ):
            if value is None or left_ms < 0:
                continue
            try:
                block = blocks.decode(value)
                upto, *_ = read_stamp(block.stamp, name)
            except (DamagedBlock, ValueError):
                continue  # as a read does: what is damaged is not there
            found.append(SpanShared(key[2], upto, len(block.ts), size, left_ms / 1000))
    missing = tuple(_gaps(starts, {f.start for f in found}, level.length))
    return LevelShared(level.key[1], tuple(found), missing)


def _gaps(starts: Sequence[int], found: Collection[int], length: int) -> Iterator[Span]:
    """Yield the ranges of neighbours that were not found.

    >>> list(_gaps([0, 10, 20, 30], {10}, 10))
    [Span(start=0, end=10), Span(start=20, end=40)]
    """
    begin: int | None = None
    for start in starts:
        if start in found:
            if begin is not None:
                yield Span(begin, start)
            begin = None
        elif begin is None:
            begin = start
    if begin is not None:
        yield Span(begin, starts[-1] + length)
