"""What a store has written to a shard: how far a reader must have come to see it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from toolkit.cluster import Cluster
from toolkit.errors import QueryError, ToolkitError
from toolkit_routing import NOWHERE, Position

_log = logging.getLogger("toolkit.cluster")


class Written:
    """Where the log of a cluster's primary was after the last write of a store; safe to share."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self.position: Position | None = None  # what was written is before that
        self.wrote_at = float("-inf")
        self._unsettled_at = float("-inf")  # the last write of which that is not known

    def writing(self) -> None:
        """Hear that a write is on its way: where the log is after it is not known."""
        with self._cluster.lock:
            self.wrote_at = self._unsettled_at = self._clock()

    async def wrote(self, *, may_be_stored: bool) -> None:
        """Note where the primary's log is after a write of ours; if not now, then before a read.

        If that cannot be asked after a write that has failed, no read need see anything of it.
        """
        with self._cluster.lock:
            before = self._unsettled_at
            self.wrote_at = self._unsettled_at = now = self._clock()
        try:
            await self._settle(wait=0.0)
        except ToolkitError as error:
            _log.info("where the last write is in the log is asked later: %s", error)
            with self._cluster.lock:
                if not may_be_stored and self._unsettled_at == now:
                    self._unsettled_at = before

    async def _settle(self, wait: float | None = None) -> Position | None:
        """Ask the primary where its log is, and take all writes of ours to be before that."""
        asked_at = self._clock()
        if (primary := self._cluster.health.primary) is not None and primary.is_untold:
            found = None
        else:
            found = await self._cluster.position(wait)
        with self._cluster.lock:
            if found is not None and _is_later(found, self.position):
                self.position = found
            if asked_at >= self._unsettled_at:
                self._unsettled_at = float("-inf")
            return self.position

    async def own(self) -> Position:
        """Return a position behind all that was written here."""
        found = self.position
        if found is None or self._is_unsettled:
            found = await self._settle()
        if found is None:
            raise QueryError(
                f"token: shard {self._cluster.shard.name!r} does not tell how far its log is; "
                'read with freshness="strong" what another process has written'
            )
        return found

    @property
    def _is_unsettled(self) -> bool:
        if self.position is not None and self.position.timeline < self._cluster.health.timeline:
            return True  # what has survived of it is on the new one, too
        return self._unsettled_at > float("-inf")

    async def wanted(self) -> Position | None:
        """Return what a reader must see to see what was written here; None: nothing was."""
        if self._is_unsettled:
            try:
                return await self._settle(wait=0.0)
            except ToolkitError:
                if self._unsettled_at > float("-inf"):
                    return Position(0, self._cluster.health.timeline, NOWHERE)
        return self.position


def _is_later(one: Position, other: Position | None) -> bool:
    return other is None or (one.timeline, one.lsn) > (other.timeline, other.lsn)
