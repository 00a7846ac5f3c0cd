"""The second tier: spans in a Redis that many processes share, and what makes them trustworthy.

Beside the spans of a dataset lies a cursor: a snapshot of the database up to which every change
has been followed, and the spans it touched deleted. Whoever looks at the change log begins at
that cursor, deletes, and then moves it, if nobody else has meanwhile; and a span is stored only
if the cursor still is what it was before the span was fetched. So a span that is found beside a
cursor is right as of that cursor, whoever stored it and whoever was cut off in between.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2s
from typing import TYPE_CHECKING

import numpy as np

from toolkit import blocks
from toolkit.blocks import DamagedBlock
from toolkit.cache import LENGTHS, Held, Key, level_of_rollup
from toolkit.cache.policy import Policy
from toolkit.catalog import Entry

if TYPE_CHECKING:
    from toolkit.drivers.shelf import Shelf

FORMAT = "tk1"
LEASE = "lease"  # in place of an epoch, which is never that
CURSOR_MS = 7 * 86_400_000
_MOST_KEYS = 20_000  # above that, one new epoch is cheaper than so many deletes
_LEASE_MS = 2_000
_TRIES = 4  # to move a cursor that others move
Change = tuple[int, int, int]
"""A series' id, and from when to when it has changed, in µs."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the spans under one epoch have been kept up to date.

    ``serial`` counts how often some of them were dropped by hand: a fill that began before is
    refused, as it is when the snapshot has moved. ``as_of`` is what is known here alone: a later
    snapshot up to which nothing has changed.
    """

    snapshot: str
    epoch: str
    serial: int = 0
    as_of: str = field(default="", compare=False)

    @classmethod
    def begin(cls, snapshot: str) -> Cursor:
        """Return a cursor under which there is nothing yet."""
        return cls(snapshot, secrets.token_hex(6))

    @classmethod
    def read(cls, said: bytes | None, base: str) -> Cursor | None:
        """Read what lies in Redis; None if that is not a cursor of the spans under ``base``."""
        parts = (said or b"").decode("ascii", "replace").split("|")
        if len(parts) != 4 or not parts[2].isdecimal():
            return None
        cursor = cls(parts[0], parts[1], int(parts[2]))
        return cursor if cursor.said(base) == said else None

    def is_as_of(self, snapshot: str) -> bool:
        """Return whether spans beside it are right as of a snapshot, or later."""
        return not is_older(self.as_of or self.snapshot, snapshot)

    def said(self, base: str) -> bytes:
        """Return what lies in Redis: with a checksum, for a wrong digit would be believed."""
        said = f"{self.snapshot}|{self.epoch}|{self.serial}"
        check = blake2s(f"{base}|{said}".encode(), digest_size=6).hexdigest()
        return f"{said}|{check}".encode()


def is_older(one: str, other: str) -> bool:
    """Return whether a snapshot saw less than another of the same server.

    >>> is_older("10:20:11", "10:20:11"), is_older("10:20:11", "12:20:"), is_older("9:30:", "9:9:")
    (False, True, False)
    >>> is_older("10:20:10,11", "10:20:10"), is_older("20:20:", "10:20:10")
    (True, False)
    """
    mine, others = (s.split(":") for s in (one, other))
    if mine[1] == others[1]:  # the bounds do not tell: those under way do
        return bool(set(mine[2].split(",")) - set(others[2].split(",")) - {""})
    return int(mine[0]) < int(others[0]) or int(mine[1]) < int(others[1])


@dataclass(slots=True)
class Tier:
    """One dataset's spans in Redis: the start of their keys, and the cursor last known."""

    base: str
    cursor: Cursor | None = None
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def cursor_key(self) -> str:
        return f"{self.base}:cursor"

    def key(self, key: Key, epoch: str) -> str:
        """Return what a span is called."""
        (_, level, length), series, start = key
        return f"{self.base}:{epoch}:{level}:{length}:{series}:{start}"

    def lease_key(self, key: Key) -> str:
        """Return what the lease of a span is called: the same whatever becomes of the cursor."""
        return self.key(key, LEASE)


class Shared:
    """Spans of one store's datasets on a shelf; when that is out, it finds and keeps nothing."""

    def __init__(self, shelf: Shelf, clock: Callable[[], float], policy: Policy) -> None:
        self.shelf = shelf
        self._clock = clock
        self._policy = policy
        self.hits = self.misses = self.damaged = self.refused = self.waits = self.dropped = 0

    def tier(self, entry: Entry, identity: str) -> Tier:
        """Return a dataset's tier on the server and database of ``identity``."""
        said = repr((identity, entry.schema, entry.id, entry.dataset))
        return Tier(f"{FORMAT}:{blake2s(said.encode(), digest_size=9).hexdigest()}")

    async def begin(self, tier: Tier) -> Cursor | None:
        """Ask how far the tier has been followed."""
        looked = await self.shelf.look(tier.cursor_key, ())
        if looked is None:
            return None
        cursor = Cursor.read(looked.cursor, tier.base)
        if cursor is None and looked.cursor is not None:
            self.damaged += 1
            await self.shelf.drop([tier.cursor_key])  # or nobody could put one there
        return cursor

    async def listen(self, tier: Tier, hear: Callable[[], None]) -> None:
        """Call ``hear`` soon after others have moved the tier's cursor, if they can be heard."""
        await self.shelf.listen(tier.cursor_key, hear)

    async def follow(
        self,
        tier: Tier,
        entry: Entry,
        was: Cursor | None,
        since: str,
        now: str,
        changes: Sequence[Change] | None,
    ) -> None:
        """Delete what has changed from snapshot ``since`` on, and note that all was up to ``now``.

        ``changes`` None: nothing is known of what has, so that all of it goes. Those that the
        cursor ``was`` has seen may be left out. Call it after :meth:`begin`; where others are
        faster, theirs is looked at.
        """
        for _ in range(_TRIES):
            if was is not None and was.snapshot == now:
                tier.cursor = was  # others have done all of it
                return
            if was is not None and changes is not None:
                if is_older(was.snapshot, since):
                    changes = None  # others have begun from further back than is known here
                elif is_older(now, was.snapshot):
                    tier.cursor = was
                    return
                elif not changes:
                    tier.cursor = replace(was, as_of=now)
                    return
            keys, following, expected = None, Cursor.begin(now), None
            if was is not None:
                expected = was.said(tier.base)
                keys = self.keys(tier, entry, was, changes) if changes is not None else None
                following = replace(was, snapshot=now, as_of="") if keys is not None else following
            moved = await self.shelf.advance(
                tier.cursor_key, expected, following.said(tier.base), keys or [], CURSOR_MS
            )
            tier.cursor = following if moved else None
            if moved is not False:
                return
            was = await self.begin(tier)
            if was is None:
                return
        tier.cursor = None

    def keys(
        self, tier: Tier, entry: Entry, cursor: Cursor, changes: Iterable[Change]
    ) -> list[str] | None:
        """Return the keys of every span that changes touch, None if they are too many."""
        levels = [("points", length, 0) for length in LENGTHS]
        for rollup in entry.rollups:
            level = level_of_rollup(entry, rollup)
            levels.append((level.key[1], level.length, level.origin))
        keys: set[str] = set()
        for series, low, high in changes:
            for name, length, origin in levels:
                first = low - (low - origin) % length
                if (high - first) // length + len(keys) > _MOST_KEYS:
                    return None
                for start in range(first, high, length):
                    keys.add(tier.key(((entry.id, name, length), series, start), cursor.epoch))
        return list(keys)

    async def find(
        self, tier: Tier, keys: Sequence[Key], as_of: str, *, is_again: bool = False
    ) -> dict[Key, Held]:
        """Return those spans that are there, right as of the snapshot ``as_of`` or later.

        ``is_again``: what is missing was missed before, and is not counted twice.
        """
        cursor = tier.cursor
        wanted = [k for k in keys if _is_shared(k)]
        if cursor is None or not wanted:
            return {}
        names = [tier.key(k, cursor.epoch) for k in wanted]
        looked = await self.shelf.look(tier.cursor_key, names)
        if looked is None:
            return {}
        if looked.cursor != cursor.said(tier.base):
            # somebody has followed further or dropped some; or begun anew, or was slower than us
            there = Cursor.read(looked.cursor, tier.base)
            if there is not None and there == replace(cursor, serial=there.serial):
                there = replace(there, as_of=cursor.as_of)
            tier.cursor = there
        else:
            there = cursor
        if there is None or not there.is_as_of(as_of) or there.epoch != cursor.epoch:
            return {}
        found = {}
        for key, name, value in zip(wanted, names, looked.values, strict=True):
            held = self._held(key, name, value) if value is not None else None
            if held is not None and held.expires > self._clock():
                found[key] = held
        self.hits += len(found)
        self.misses += 0 if is_again else len(wanted) - len(found)
        return found

    def _held(self, key: Key, name: str, value: bytes) -> Held | None:
        """Return what a block holds; None if it is damaged, or was stored under another name."""
        try:
            block = blocks.decode(value)
            upto, end_ms, life_ms = read_stamp(block.stamp, name)
        except (DamagedBlock, ValueError):
            self.damaged += 1
            return None
        codes, now = np.zeros(len(block.ts), np.int32), self._clock()
        # a life at most: walls may be set back
        expires = now + min(end_ms / 1000 - self._policy.wall(), life_ms / 1000)
        due = self._policy.due(expires, life_ms / 1000)
        return Held(key[2], upto, block.ts, codes, block.values, block.categories, expires, due)

    async def keep(self, tier: Tier, cursor: Cursor, spans: Mapping[Key, Held]) -> None:
        """Store spans that were fetched after ``cursor`` was known, if it still stands."""
        now, wall = self._clock(), self._policy.wall()
        items = []
        for key, held in spans.items():
            life_ms = int((held.expires - now) * 1000)
            if _is_shared(key) and life_ms > 0:
                name = tier.key(key, cursor.epoch)
                stamp = f"{name} {held.upto} {int(wall * 1000) + life_ms} {life_ms}"
                data = blocks.encode(held.ts, held.values, held.categories, stamp=stamp)
                items.append((name, data, life_ms))
        if items and not await self.shelf.put(tier.cursor_key, cursor.said(tier.base), items):
            self.refused += 1

    async def lease(self, tier: Tier, key: Key, token: str) -> bool:
        """Return whether the fetch of a span is ours: also where nobody can say."""
        if tier.cursor is None or not _is_shared(key):
            return True
        taken = await self.shelf.lease(tier.lease_key(key), token, _LEASE_MS)
        return taken is not False

    async def release(self, tier: Tier, key: Key, token: str) -> None:
        """Let others fetch a span."""
        if _is_shared(key):
            await self.shelf.release(tier.lease_key(key), token)

    async def close(self) -> None:
        await self.shelf.close()

    def stats(self) -> dict[str, float]:
        """Return plain counters."""
        own = {"hits": self.hits, "misses": self.misses}
        own |= {"damaged": self.damaged, "refused": self.refused}
        own |= {"waits": self.waits, "dropped": self.dropped}
        both = {**self.shelf.stats(), **own}
        return {f"redis_{name}": float(value) for name, value in both.items()}


def read_stamp(stamp: str, name: str) -> tuple[int, int, int]:
    """Return up to where a block's rows go, when its life ends (ms since 1970), and how long it is.

    Raises DamagedBlock where it was not stored under ``name``.
    """
    stored_as, *numbers = stamp.split() or [""]
    if stored_as != name or len(numbers) != 3:
        raise DamagedBlock(f"a block of {stored_as}")
    upto, end_ms, life_ms = map(int, numbers)
    return upto, end_ms, life_ms


def _is_shared(key: Key) -> bool:
    """Whether everybody who hears of a change knows that there may be such a span."""
    return key[0][1] != "points" or key[0][2] in LENGTHS
