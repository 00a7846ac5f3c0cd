"""The doors to PostgreSQL: all that waits, in two colours behind one protocol.

Request code is written once, as coroutines over :class:`Driver`. The asyncio driver's leaves
suspend; the blocking driver's never do, so :func:`drive` runs such a coroutine to its end
without an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from toolkit_routing import Load

T = TypeVar("T")
Params = Mapping[str, Any]
Rows = list[tuple[Any, ...]]
OUT_OF_RANGE = "22003"
"""SQLSTATE of a sum or product that leaves its type."""
BULK_TIMEOUT = 3600.0
"""Seconds a statement may take that writes, deletes or refreshes in bulk."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a driver learned of its server when it first connected.

    ``lacks`` are settings that sessions behind a pooler are not given.
    """

    version: int
    sysid: int | None
    lacks: tuple[str, ...] = ()


class Transaction(Protocol):
    """A connection inside a transaction."""

    async def fetch(self, statement: bytes, params: Params | None = None) -> Rows:
        """Run a statement and return its rows; column values binary-decoded."""

    async def execute(self, statement: bytes, params: Params | None = None) -> int:
        """Run a statement and return how many rows it touched."""

    async def copy(self, statement: bytes, pieces: Iterable[bytes]) -> None:
        """Run ``COPY … FROM STDIN`` with the pieces of its stream."""

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """Roll back to here, and no further, when the block raises."""


class Driver(Protocol):
    """One server behind a pool of connections; safe to share."""

    node: str

    async def open(self) -> Server:
        """Connect once, learn what the server is, and start the pool; cheap when open."""

    async def close(self) -> None:
        """Close every connection."""

    async def fetch(
        self, statement: bytes, params: Params | None = None, *, timeout: float | None = None
    ) -> Rows:
        """Run one statement outside a transaction; repeated once if its connection was dead.

        Waiting for a connection counts against ``timeout``.
        """

    async def command(self, statement: bytes, *, timeout: float, alone: str = "") -> bool:
        """Run what may not stand in a transaction, VACUUM for instance, on a connection of its own.

        It may take ``timeout`` seconds. Where somebody does something ``alone`` under that name
        already, nothing is done, and False returned.
        """

    def transaction(
        self,
        *,
        snapshot: str | None = None,
        repeatable: bool = False,
        read_only: bool = False,
        timeout: float | None = None,
        patience: float | None = None,
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction; a connection that is found dead at its beginning is passed over.

        ``snapshot`` is one that another transaction exported; ``timeout`` bounds each statement
        and ``patience`` the wait for a connection, in seconds. A connection lost during COMMIT
        is OutcomeUnknown, unless the transaction is read-only.
        """

    def cut(self) -> None:
        """Break every connection: whoever waits for an answer hears at once that it is lost.

        The next call connects anew. May be called from any thread.
        """

    async def again(self, job: Callable[[], Coroutine[Any, Any, T]], *, is_idempotent: bool) -> T:
        """Run a job that is one transaction; once more where its primary was lost, and another is.

        Not if its COMMIT was sent, unless it ``is_idempotent``. With one server only: once.
        """

    async def gather(
        self,
        jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]],
        *,
        on_error: Callable[[], None] = lambda: None,
    ) -> list[T]:
        """Run jobs at the same time and return their results in order.

        When one fails, or the caller is interrupted, ``on_error`` is called once: from then on
        the others should come to an end. They have done so when the error is raised.
        """

    async def once(
        self,
        key: Hashable,
        make: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
    ) -> T:
        """Run ``make``, or, where somebody runs it under this key already, wait for that.

        All share the outcome, an error too; when who runs it is interrupted, or its own time is
        over, another one does. ``timeout`` bounds the wait for another, not ``make``.
        """

    def later(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run ``make`` where nobody waits for it, unless that is under way under this key.

        It may never be run; its errors are logged.
        """

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        """Run CPU work where it does not hold up others."""

    async def pause(self, seconds: float) -> None:
        """Sleep."""

    async def hear(self, future: Future[None], timeout: float) -> bool:
        """Wait for something that another thread or task will say; False if it does not."""

    def stats(self) -> dict[str, int]:
        """Return plain counters of the pool."""


class NodeDriver(Driver, Protocol):
    """The driver of a server itself; ``load`` is what is on its way there, and how it answers."""

    load: Load


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose leaves never suspend, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking driver's leaf suspended")
