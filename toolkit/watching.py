"""What is seen of a store's calls: failures are counted, slow ones logged, and spans begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from toolkit import slow
from toolkit.columns import Columns
from toolkit.counters import Counters
from toolkit.errors import Stopped, ToolkitError
from toolkit.intake import WriteReport
from toolkit.query import Query
from toolkit.tracing import Span, Tracing

Clock = Callable[[], float]
P = ParamSpec("P")
T = TypeVar("T")


class Watch:
    """Watches calls that go to a server; safe to share between threads.

    Those of ``threshold`` seconds or more are logged as slow; 0 logs none. Waiting counts: for a
    turn, a connection, a lock, a primary. What fails is logged, too.
    """

    def __init__(
        self,
        counters: Counters,
        threshold: float,
        tracing: Tracing,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.counters = counters
        self.threshold = threshold
        self.tracing = tracing
        self.clock = clock

    def over(self, operation: str, asked: Query | str) -> Call:
        """Watch what is done in the block: with a query, or with the dataset that a text names."""
        return Call(self, operation, asked)


class Call:
    """One call under way; used in a ``with`` block, in which it is told the ``outcome``."""

    __slots__ = ("_asked", "_began", "_operation", "_span", "_watch", "outcome")

    def __init__(self, watch: Watch, operation: str, asked: Query | str) -> None:
        self._watch = watch
        self._operation = operation
        self._asked = asked
        self._began = 0.0
        self._span: Span | None = None
        self.outcome: Columns | WriteReport | None = None

    def __enter__(self) -> Call:
        asked = self._asked
        dataset = asked if isinstance(asked, str) else asked.asked.dataset
        self._span = self._watch.tracing.begin(self._operation, dataset)
        self._began = self._watch.clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        watch = self._watch
        took = watch.clock() - self._began
        if isinstance(error, Stopped):
            error = None
        if isinstance(error, Exception):
            is_ours = isinstance(error, ToolkitError)
            watch.counters.add(**{f"errors_{type(error).__name__ if is_ours else 'other'}": 1})
        outcome = error or self.outcome
        if self._span is not None:
            self._span.end(outcome)
        is_slow = watch.threshold and took >= watch.threshold
        if is_slow and self._operation in slow.WORDS:
            slow.tell(self._operation, self._asked, took, outcome)


class Watched(Protocol):
    """What has its calls watched."""

    watch: Watch


W = TypeVar("W", bound=Watched)
Method = Callable[Concatenate[W, str, P], Coroutine[Any, Any, T]]


def watched(method: Method[W, P, T]) -> Method[W, P, T]:
    """Watch what a method does with a dataset, by its own name; what ends well is upkeep."""

    @wraps(method)
    async def call(self: W, dataset: str, /, *args: P.args, **options: P.kwargs) -> T:
        with self.watch.over(method.__name__, dataset):
            found = await method(self, dataset, *args, **options)
        self.watch.counters.add(upkeep=1)
        return found

    return call
