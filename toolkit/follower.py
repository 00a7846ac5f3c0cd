"""What tells a cache of changes: the change log, read from where it was read last."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.cache import Memory
from toolkit.catalog import Entry
from toolkit.drivers import Driver, Params
from toolkit.errors import ToolkitError
from toolkit.statements import compose, name
from toolkit.timegrid import to_us

_log = logging.getLogger("toolkit.follower")
_MOST = 5_000  # changed ranges that are worth looking at one by one


@dataclass(slots=True)
class _Place:
    """How far one dataset's log has been followed, and when.

    ``checked_at`` is when the last look began: what was committed before it has been heard of.
    ``wanted_at`` is when somebody here wrote: a look must begin after that.
    """

    cursor: str = ""
    started: object = None
    checked_at: float = float("-inf")
    wanted_at: float = float("-inf")


class Follower:
    """Follows the change logs of one store's datasets, each as far as its reads need.

    A look costs one round trip. Nobody runs in the background: a read that needs to know more
    than is known looks first, and who comes meanwhile waits for that look.
    """

    def __init__(self, driver: Driver, memory: Memory, clock: Callable[[], float]) -> None:
        self._driver = driver
        self._memory = memory
        self._clock = clock
        self._places: dict[int, _Place] = {}

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
        place = self._places.get(entry.id)
        if place is None:
            place = self._places.setdefault(entry.id, _Place())
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

    async def _look(self, entry: Entry, place: _Place, timeout: float | None) -> None:
        began = self._clock()
        cursor = place.cursor or "1:1:"
        params: Params = {
            "dataset_id": entry.id,
            "cursor": cursor,
            "most": _MOST + 1 if place.cursor else 0,  # nothing is held before the first look
        }
        rows = await self._driver.fetch(self._statement(entry), params, timeout=timeout)
        if not rows:  # the dataset is gone
            self._memory.drop_all(entry.id)
            self._places.pop(entry.id, None)
            place.checked_at = began
            return
        now, started, is_whole = rows[0][:3]
        reason = ""
        if place.cursor and (started != place.started or _xmax(now) < _xmax(cursor)):
            reason = "the server was restarted"
        elif place.cursor and not is_whole:
            reason = "the change log was cut"
        elif len(rows) > _MOST:
            reason = "much has changed"
        if reason:
            _log.info("%s: %s; nothing cached is kept", entry.dataset.name, reason)
            self._memory.drop_all(entry.id)
        else:
            for _, _, _, series, low, high in rows:
                if series is not None:
                    self._memory.drop(entry.id, series, to_us(low), to_us(high))
        place.cursor, place.started, place.checked_at = now, started, began

    def _statement(self, entry: Entry) -> bytes:
        def make() -> bytes:
            return compose(
                "cache/follow_changes",
                dataset=name(entry.schema, "dataset"),
                log=name(entry.schema, f"{entry.dataset.name}_log"),
            )

        statement: bytes = entry.once("follow changes", make)
        return statement


def _xmax(snapshot: str) -> int:
    return int(snapshot.split(":")[1])
