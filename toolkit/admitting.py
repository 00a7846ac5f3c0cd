"""The door of a store's reads: a turn for each, or a clear refusal."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from toolkit.drivers import Driver
from toolkit.errors import Overloaded
from toolkit.query import Query
from toolkit_routing import Admission, AdmissionOptions, Refused


class Gate:
    """Lets reads in as the options say; what is answered from memory does not come by here."""

    def __init__(
        self,
        driver: Driver,
        options: AdmissionOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._options = options
        self._clock = clock
        self._admission = Admission(options, clock)
        self._owner = os.getpid()

    @asynccontextmanager
    async def turn(self, query: Query) -> AsyncIterator[None]:
        """Run the block when it is the query's turn; Overloaded if that does not come in time."""
        if not self._options.is_on:
            yield
            return
        if self._owner != os.getpid():  # who was under way when we forked is not here
            self._admission = Admission(self._options, self._clock)
            self._owner = os.getpid()
        admission = self._admission
        await self._enter(admission, query)
        began = self._clock()
        try:
            yield
        finally:
            admission.leave(self._clock() - began)

    async def _enter(self, admission: Admission, query: Query) -> None:
        deadline = admission.deadline(query.priority)
        if query.timeout is not None:
            deadline = min(deadline, query.timeout)
        until = self._clock() + deadline
        place = admission.join(query.caller, query.priority, until)
        try:
            if place is not None:
                while wait := admission.token(place):
                    await self._driver.pause(wait)
            await self._find_room(admission, query.priority, until)
        except BaseException as error:
            if place is not None:
                admission.withdraw(place)
            if isinstance(error, Refused):
                raise _overloaded(error, query.priority, deadline) from None
            raise

    async def _find_room(self, admission: Admission, priority: str, until: float) -> None:
        turn = admission.enter(priority, until)
        if turn is None:
            return
        try:
            is_ours = await self._driver.hear(turn, max(until - self._clock(), 0.0))
        except BaseException:
            if admission.give_up(turn) is None:
                admission.leave(0.0)
            raise
        in_vain = None if is_ours else admission.give_up(turn)
        if in_vain is not None:
            raise in_vain

    def stats(self) -> dict[str, float]:
        """Return plain counters; nothing where nobody is made to wait."""
        return self._admission.stats() if self._options.is_on else {}


def _overloaded(refused: Refused, priority: str, deadline: float) -> Overloaded:
    return Overloaded(
        f"{refused}: a {priority} read gets no turn within {deadline:g} s; try again in "
        f"{refused.retry_after:.3g} s, or raise {refused.limit} in [admission]",
        refused.retry_after,
    )
