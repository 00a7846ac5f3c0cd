"""Metrics to Prometheus: through a caller's registry, or as a file that cron writes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from threading import Thread
from typing import TYPE_CHECKING, Any

from toolkit.errors import ConfigError, ExportError, MissingExtra, QueryError, ToolkitError
from toolkit.metrics import server
from toolkit.metrics.process import Process
from toolkit.metrics.server import Figures
from toolkit.metrics.table import BOUNDS_S, BY_NAME, COUNTER, Datasets, Histogram, Values

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from toolkit.aio import AsyncStore
    from toolkit.config import Settings
    from toolkit.store import Store

_log = logging.getLogger("toolkit.metrics")


def register(
    store: Store | AsyncStore,
    registry: CollectorRegistry | None = None,
    *,
    server_every: float | None = 60.0,
) -> Metrics:
    """Show the metrics of a store in a registry of ``prometheus_client`` (None: its default).

    A store costs nothing more for it: its counters are read when somebody scrapes. What the server
    says (jobs, partitions, connections) is asked for in the background, at most every
    ``server_every`` seconds, so that a scrape waits for nobody; None: not at all. Returns the
    collector, for ``registry.unregister``. Raises MissingExtra without ``prometheus_client``,
    QueryError where it is given something else, and ConfigError where the registry shows a store
    already.
    """
    client = _client()
    _check(store, registry)
    found = Metrics(store, server_every)
    try:
        (client.REGISTRY if registry is None else registry).register(found)
    except ValueError:
        raise ConfigError(
            "metrics",
            "",
            "this registry shows a store already, whose series would have the same names; "
            "unregister that, or give this one a registry of its own",
        ) from None
    return found


def _check(store: object, registry: object) -> None:
    from toolkit.aio import AsyncStore
    from toolkit.store import Store

    if not isinstance(store, Store | AsyncStore):
        raise QueryError(f"store: expected a Store or an AsyncStore, got {type(store).__name__}")
    if registry is not None and not hasattr(registry, "register"):
        kind = type(registry).__name__
        raise QueryError(f"registry: expected a CollectorRegistry of prometheus_client, got {kind}")


class Metrics:
    """A collector of ``prometheus_client``; safe to scrape from several threads."""

    def __init__(self, store: Store | AsyncStore, server_every: float | None = None) -> None:
        self._process = Process(store)
        self._has_nodes = store.settings.topology is not None
        self._datasets = Datasets()
        self._looks = None if server_every is None else Looks(store.settings, server_every)

    def values(self) -> Values:
        """Return the metrics as they are now."""
        found = self._process.values()
        if self._looks is not None and self._looks.is_told():
            told = server.values(self._looks.figures, self._datasets)
            if self._has_nodes:  # this process looks at them itself: node_lag_*
                told = {name: of for name, of in told.items() if not name.startswith("replica_")}
            found |= told
        return found

    def collect(self) -> Iterator[Any]:
        """Yield what ``prometheus_client`` asks of a collector."""
        return families(self.values())

    def describe(self) -> list[Any]:
        """Return what there may be, so that a registry need not scrape to know us."""
        return list(families({name: {} for name in BY_NAME}))


class Looks:
    """Asks the server now and then, in a thread that nobody waits for."""

    def __init__(
        self,
        settings: Settings,
        every: float,
        clock: Callable[[], float] = time.monotonic,
        look: Callable[[Settings], Figures] = server.look,
    ) -> None:
        self.figures: Figures | None = None
        self._settings = settings
        self._every = every
        self._clock = clock
        self._ask = look
        self._looked_at: float | None = None
        self._begun_at: float | None = None
        self._thread: Thread | None = None

    def is_told(self) -> bool:
        """Return whether there was a look already; begins another where the last is old."""
        is_old = self._begun_at is None or self._clock() - self._begun_at >= self._every
        if is_old and (self._thread is None or not self._thread.is_alive()):
            self._begun_at = self._clock()
            self._thread = Thread(target=self._look, name="toolkit metrics", daemon=True)
            self._thread.start()
        return self._looked_at is not None

    def _look(self) -> None:
        try:
            self.figures = self._ask(self._settings)
        except ToolkitError as error:
            _log.info("the server told no figures: %s", error)
            self.figures = None
        self._looked_at = self._clock()


def families(values: Values) -> Iterator[Any]:
    """Yield metrics as families of ``prometheus_client``."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    bounds = [*(format(b, "g") for b in BOUNDS_S), "+Inf"]
    for name, found in values.items():
        metric = BY_NAME[name]
        full = f"toolkit_{name}"
        family: Any
        if metric.kind == "histogram":
            family = HistogramMetricFamily(full, metric.help, labels=metric.labels)
            for labels, value in found.items():
                assert isinstance(value, Histogram)
                counts = [*value.below, value.count]
                family.add_metric(labels, list(zip(bounds, counts, strict=True)), value.sum)
        else:
            kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            family = kind(full, metric.help, labels=metric.labels)
            for labels, value in found.items():
                family.add_metric(labels, value)
        yield family


def text(values: Values) -> str:
    """Return metrics in the text format of Prometheus."""
    client = _client()
    registry = client.CollectorRegistry()
    registry.register(_Given(values))
    said: bytes = client.generate_latest(registry)
    return said.decode()


def write_textfile(values: Values, path: str | os.PathLike[str]) -> None:
    """Write metrics to a file for the textfile collector of ``node_exporter``, at once.

    Who reads it meanwhile sees the old file or the new one. Raises ExportError.
    """
    client = _client()
    registry = client.CollectorRegistry()
    registry.register(_Given(values))
    try:
        client.write_to_textfile(os.fspath(path), registry)
    except OSError as error:
        raise ExportError(f"{os.fspath(path)}: {error.strerror or error}") from error


class _Given:
    """A collector of values that are there."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Any]:
        return families(self._values)


def _client() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise MissingExtra("prometheus-client", "metrics", "metrics for Prometheus") from None
    return prometheus_client
