"""What tells a cache of changes: the change log, read from where it was read last."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from toolkit.cache import Memory
from toolkit.catalog import Entry
from toolkit.drivers import Driver, Params, Rows
from toolkit.drivers.waiting import left
from toolkit.errors import DatabaseError, ToolkitError
from toolkit.shared import Shared, Tier, is_older
from toolkit.statements import compose, name, part, raw
from toolkit.timegrid import to_us
from toolkit_routing import Token, settled

_log = logging.getLogger("toolkit.follower")
_MOST = 5_000  # changed ranges that are worth looking at one by one
NOTHING = "1:1:"  # the snapshot that saw nothing
_NOT_TOLD = ("42501", "0A000")  # what a managed server answers instead of a position
_MOST_TOKENS = 10_000
_SHARE = 10  # one part in so many of the time may go into looks because of messages
_LEAST_TIME = 0.001  # seconds that a look gets, however late its caller is


@dataclass(slots=True)
class Place:
    """How far one dataset's log has been followed, and when.

    ``checked_at`` is when the last look began: what was committed before it has been heard of.
    ``wanted_at`` is when somebody here wrote: a look must begin after that. ``heard_at`` is when
    others were last heard to have: one should, too, and soon, as ``took`` says in seconds what it
    costs. ``tier`` is where the dataset's spans are shared. ``position`` is where the primary's
    log was after the last look, timeline and LSN, where there are replicas.
    """

    snapshot: str = ""
    identity: str = ""
    checked_at: float = float("-inf")
    wanted_at: float = float("-inf")
    heard_at: float = float("-inf")
    took: float = 0.0
    tier: Tier | None = None
    position: tuple[int, int] | None = None

    def needed(self, since: float, now: float) -> float:
        """Return after when a look must have begun, for who sees what was written here.

        Messages may come faster than looks can be made: those take a tenth of the time, no more.

        >>> place = Place(checked_at=10.0, wanted_at=9.0, heard_at=10.5, took=0.1)
        >>> place.needed(9.5, now=10.6), place.needed(9.5, now=11.1), place.needed(10.8, now=10.9)
        (9.5, 10.5, 10.8)
        """
        needed = max(since, self.wanted_at)
        if needed < self.heard_at and now - self.checked_at > _SHARE * self.took:
            return self.heard_at
        return needed


class Follower:
    """Follows the change logs of one store's datasets, each as far as its reads need.

    A look costs one round trip, and one to Redis where spans are shared. Nobody looks in the
    background: a read that needs to know more than is known looks first, and who comes meanwhile
    waits for that look. Where spans are shared, who finds a change says so to the others.
    """

    def __init__(
        self,
        driver: Driver,
        memory: Memory,
        clock: Callable[[], float],
        shared: Shared | None = None,
        *,
        has_replicas: bool = False,
    ) -> None:
        self._driver = driver
        self._has_replicas = has_replicas
        self._memory = memory
        self._clock = clock
        self._shared = shared
        self._places: dict[int, Place] = {}
        self._heard: dict[str, float] = {}

    def place(self, entry: Entry) -> Place:
        """Return how far a dataset has been followed."""
        return self._places.setdefault(entry.id, Place())

    def hear(self, token: Token) -> None:
        """Hear that somebody must see what a token stands for: who looks from now on does."""
        if len(self._heard) >= _MOST_TOKENS:
            self._heard.clear()
        self._heard.setdefault(str(token), self._clock())

    def covers(self, entry: Entry, token: Token) -> bool:
        """Return whether the last look began after a token was heard of.

        Its position would not tell: a commit that waits for a replica is in the log, and nobody
        sees it yet.
        """
        place, heard_at = self._places.get(entry.id), self._heard.get(str(token))
        return place is not None and heard_at is not None and place.checked_at >= heard_at

    def knows(self, entry: Entry, since: float, *, own: bool) -> bool:
        """Return whether nothing needs to be looked for."""
        place = self._places.get(entry.id)
        if place is None or place.checked_at < since:
            return False
        if not own or place.wanted_at <= place.checked_at >= place.heard_at:
            return True
        return place.checked_at >= place.needed(since, self._clock())

    async def know(
        self, entry: Entry, since: float, *, own: bool = True, timeout: float | None = None
    ) -> None:
        """Return when everything committed before ``since`` is known.

        With ``own``, whatever this store has written is, too, and what others have told of.
        """
        place, began = self.place(entry), self._clock()
        # what is told of from now on is for later calls: else those would never end that wait
        since = place.needed(since, began) if own else since
        while place.checked_at < since:
            rest = left(timeout, self._clock() - began)
            limit = None if rest is None else max(rest, _LEAST_TIME)
            look = partial(self._look, entry, place, limit)
            await self._driver.once(("follow", entry.id), look, limit)

    async def wrote(self, entry: Entry) -> None:
        """Hear of what this store has written, or may have; if not now, then before a read.

        Where spans are shared, the others hear of it by that.
        """
        if entry.id not in self._places and self._shared is None:
            return  # nothing of it is held
        place = self.place(entry)
        place.wanted_at = wanted = self._clock()
        try:
            await self.know(entry, wanted)  # another thread may have noted an earlier one by now
        except ToolkitError as error:
            _log.info("%s: its changes are looked for later: %s", entry.dataset.name, error)

    def forget(self) -> None:
        """Trust nothing any more."""
        self._places.clear()
        self._memory.clear()

    async def _look(self, entry: Entry, place: Place, timeout: float | None) -> None:
        began = self._clock()
        tier, shared = place.tier, self._shared
        was = await shared.begin(tier) if shared is not None and tier is not None else None
        since = place.snapshot or NOTHING
        if was is not None and is_older(was.snapshot, since):
            since = was.snapshot
        known = was.snapshot if was is not None else NOTHING
        rows = await self._rows(entry, since, known, timeout, is_first=not place.snapshot)
        if not rows:  # the dataset is gone
            self._memory.drop_all(entry.id)
            place.checked_at = began
            return
        now, identity, is_whole = rows[0][:3]
        changes = [(r[3], to_us(r[4]), to_us(r[5])) for r in rows if r[3] is not None]
        unheard = [c for c, r in zip(changes, rows, strict=False) if r[6]]
        problem = ""
        if place.snapshot:
            if identity != place.identity or is_older(now, place.snapshot):
                problem, place.tier = "the server is another, or was restarted or restored", None
            elif not is_whole:
                problem = "the change log was cut"
            elif len(rows) > _MOST:
                problem = "much has changed"
        if shared is not None and place.tier is not None and tier is not None:
            # what the cursor has seen, others have deleted
            since = was.snapshot if was is not None else since
            await shared.follow(tier, entry, was, since, now, None if problem else unheard)
            await shared.listen(tier, partial(_hear, place, self._clock))
        # before anything is dropped: a fill that begins after that has to have read what changed,
        # and whatever this look saw is in the log up to there, for it was asked for after that
        timeline, lsn = rows[0][7:]
        place.position = (timeline, settled(int(lsn))) if lsn is not None else None
        # only now: until it was gone there, a read could still take it from there
        if problem:
            _log.info("%s: %s; nothing cached is kept", entry.dataset.name, problem)
            self._memory.drop_all(entry.id)
        for series, low, high in () if problem else changes:
            self._memory.drop(entry.id, series, low, high, right_until=place.checked_at)
        place.snapshot, place.identity, place.checked_at = now, identity, began
        place.took = self._clock() - began
        if shared is not None and place.tier is None:
            # where the shared spans are is known only now: look again, from where they are
            place.tier = shared.tier(entry, identity)
            await self._look(entry, place, timeout)

    async def _rows(
        self, entry: Entry, since: str, known: str, timeout: float | None, *, is_first: bool
    ) -> Rows:
        params: Params = {
            "dataset_id": entry.id,
            "since": since,
            "known": known,
            "most": 0 if is_first else _MOST + 1,  # nothing is held before the first look
        }
        if self._has_replicas:
            try:
                statement = following(entry, has_replicas=True)
                return await self._driver.fetch(statement, params, timeout=timeout)
            except DatabaseError as error:
                if error.sqlstate not in _NOT_TOLD:
                    raise
                _log.info("the server does not tell how far its log is: %s", error)
                self._has_replicas = False
        return await self._driver.fetch(following(entry), params, timeout=timeout)


def following(entry: Entry, *, has_replicas: bool = False) -> bytes:
    """Return the statement that tells what has changed in a dataset since a snapshot."""

    def make() -> bytes:
        return compose(
            "cache/follow_changes",
            position=part("cache/tell_position") if has_replicas else raw("NULL, NULL"),
            dataset=name(entry.schema, "dataset"),
            log=name(entry.schema, f"{entry.dataset.name}_log"),
        )

    statement: bytes = entry.once(("follow changes", has_replicas), make)
    return statement


def _hear(place: Place, clock: Callable[[], float]) -> None:
    place.heard_at = clock()
