"""What tells a cache of changes: the change log, read from where it was read last."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.cache import Memory
from toolkit.catalog import Entry
from toolkit.drivers import Driver, Params, Rows
from toolkit.errors import ToolkitError
from toolkit.shared import Shared, Tier, is_older
from toolkit.statements import compose, name
from toolkit.timegrid import to_us

_log = logging.getLogger("toolkit.follower")
_MOST = 5_000  # changed ranges that are worth looking at one by one
NOTHING = "1:1:"  # the snapshot that saw nothing


@dataclass(slots=True)
class Place:
    """How far one dataset's log has been followed, and when.

    ``checked_at`` is when the last look began: what was committed before it has been heard of.
    ``wanted_at`` is when somebody here wrote: a look must begin after that. ``tier`` is where
    the dataset's spans are shared.
    """

    snapshot: str = ""
    identity: str = ""
    checked_at: float = float("-inf")
    wanted_at: float = float("-inf")
    tier: Tier | None = None


class Follower:
    """Follows the change logs of one store's datasets, each as far as its reads need.

    A look costs one round trip, and one to Redis where spans are shared. Nobody runs in the
    background: a read that needs to know more than is known looks first, and who comes meanwhile
    waits for that look.
    """

    def __init__(
        self,
        driver: Driver,
        memory: Memory,
        clock: Callable[[], float],
        shared: Shared | None = None,
    ) -> None:
        self._driver = driver
        self._memory = memory
        self._clock = clock
        self._shared = shared
        self._places: dict[int, Place] = {}

    def place(self, entry: Entry) -> Place:
        """Return how far a dataset has been followed."""
        return self._places.setdefault(entry.id, Place())

    def knows(self, entry: Entry, since: float, *, own: bool) -> bool:
        """Return whether nothing needs to be looked for."""
        place = self._places.get(entry.id)
        if place is None or place.checked_at < since:
            return False
        return not own or place.checked_at >= place.wanted_at

    async def know(
        self, entry: Entry, since: float, *, own: bool = True, timeout: float | None = None
    ) -> None:
        """Return when everything committed before ``since`` is known.

        With ``own``, whatever this store has written is, too.
        """
        place = self.place(entry)
        while not self.knows(entry, since, own=own):
            await self._driver.once(("follow", entry.id), lambda: self._look(entry, place, timeout))

    async def wrote(self, entry: Entry) -> None:
        """Hear of what this store has written, or may have; if not now, then before a read."""
        place = self._places.get(entry.id)
        if place is None:
            return  # nothing of it is held
        place.wanted_at = self._clock()
        try:
            await self.know(entry, place.wanted_at)
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
        rows = await self._rows(entry, since, timeout, is_first=not place.snapshot)
        if not rows:  # the dataset is gone
            self._memory.drop_all(entry.id)
            place.checked_at = began
            return
        now, identity, is_whole = rows[0][:3]
        changes = [(r[3], to_us(r[4]), to_us(r[5])) for r in rows if r[3] is not None]
        problem = ""
        if place.snapshot:
            if identity != place.identity or is_older(now, place.snapshot):
                problem, place.tier = "the server is another, or was restarted", None
            elif not is_whole:
                problem = "the change log was cut"
            elif len(rows) > _MOST:
                problem = "much has changed"
        if shared is not None and place.tier is not None and tier is not None:
            await shared.follow(tier, entry, was, since, now, None if problem else changes)
        # only now: until it was gone there, a read could still take it from there
        if problem:
            _log.info("%s: %s; nothing cached is kept", entry.dataset.name, problem)
            self._memory.drop_all(entry.id)
        for series, low, high in () if problem else changes:
            self._memory.drop(entry.id, series, low, high, right_until=place.checked_at)
        place.snapshot, place.identity, place.checked_at = now, identity, began
        if shared is not None and place.tier is None:
            # where the shared spans are is known only now: look again, from where they are
            place.tier = shared.tier(entry, identity)
            await self._look(entry, place, timeout)

    async def _rows(
        self, entry: Entry, since: str, timeout: float | None, *, is_first: bool
    ) -> Rows:
        params: Params = {
            "dataset_id": entry.id,
            "since": since,
            "most": 0 if is_first else _MOST + 1,  # nothing is held before the first look
        }
        return await self._driver.fetch(following(entry), params, timeout=timeout)


def following(entry: Entry) -> bytes:
    """Return the statement that tells what has changed in a dataset since a snapshot."""

    def make() -> bytes:
        return compose(
            "cache/follow_changes",
            dataset=name(entry.schema, "dataset"),
            log=name(entry.schema, f"{entry.dataset.name}_log"),
        )

    statement: bytes = entry.once("follow changes", make)
    return statement
