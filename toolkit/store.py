"""The blocking store: every call runs its road to the end and returns the answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from toolkit.assembly import opened, shelf_of
from toolkit.backfill import BackfillReport
from toolkit.catalog import Series
from toolkit.columns import Columns
from toolkit.config import Settings
from toolkit.dataset import Dataset
from toolkit.drivers import drive
from toolkit.drivers.blocking import BlockingDriver
from toolkit.exporting import ExportReport, export_query
from toolkit.intake import Intake, WriteReport, check_blocking
from toolkit.query import Freshness, build_query, latest_query
from toolkit.reader import Explanation
from toolkit.timegrid import Step
from toolkit.upkeep import Upkeep


class Store(Upkeep):
    """Time series in one PostgreSQL database; threads may share it.

    Connections are opened on first use and closed at the end of the ``with`` block. A process
    that forks may go on using the store in the child: it opens connections of its own there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        shelf = shelf_of(settings, "shelf_blocking", "BlockingWire")
        self._roads = opened(settings, BlockingDriver, shelf)

    def __repr__(self) -> str:
        return f"<Store schema {self.settings.schema!r}>"

    def __enter__(self) -> Store:
        drive(self._roads.readings.learn())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; the store can be used again and opens new ones."""
        drive(self._roads.close())

    def write(
        self,
        dataset: str,
        frame: object,
        *,
        series: str | None = None,
        mode: str = "upsert",
        mapping: Mapping[str, str | None] | None = None,
        tz: str | None = None,
        time_unit: str | None = None,
        on_chunk: Callable[[WriteReport], None] = lambda report: None,
    ) -> WriteReport:
        """Store points: all of a frame in one transaction, or nothing.

        ``frame`` is a pandas or polars DataFrame, an Arrow table or a dict of arrays with
        ``ts``, ``series`` (unless given here), perhaps ``seq``, and columns of the dataset, or
        an iterator of such frames, each its own transaction (``on_chunk`` hears of each).
        ``mode``: ``upsert`` replaces points whose key exists and does not touch identical ones,
        ``insert`` fails if a key exists, ``ignore`` keeps what is there. Missing series and
        partitions are made. Of equal keys in one frame the last wins. ``mapping`` renames
        columns of the frame (to None: leaves out), ``tz`` is the zone of times without one,
        ``time_unit`` (s, ms, us, ns) of times that are integers.

        Raises InputError for what cannot be stored, PartialWrite if a later chunk fails.
        """
        check_blocking(frame, "frame")
        intake = Intake(series, mapping, tz, time_unit)
        return drive(self._roads.write(dataset, frame, intake, mode, on_chunk))

    def backfill(
        self,
        dataset: str,
        frames: object,
        *,
        series: str | None = None,
        policy: str = "replace",
        mapping: Mapping[str, str | None] | None = None,
        tz: str | None = None,
        time_unit: str | None = None,
        on_chunk: Callable[[BackfillReport], None] = lambda report: None,
    ) -> BackfillReport:
        """Store points of the past as blocks, encoded as they come: they never are rows.

        Takes what :meth:`write` takes, an iterator of frames for what is larger than memory.
        ``policy`` says what becomes of a key that is there already, in a row or a block: with
        ``replace`` the new point counts, with ``keep`` the old one, and with ``fail`` it is an
        InputError that names the first such key. A span of some thousand points is a
        transaction; after a failure, or killed at any time, the same call goes on: what would
        come out the same is left alone.

        Raises InputError for what cannot be stored, PartialWrite if a later chunk fails.
        """
        check_blocking(frames, "frames")
        intake = Intake(series, mapping, tz, time_unit)
        return drive(self._roads.backfill(dataset, frames, intake, policy, on_chunk))

    def read(
        self,
        dataset: str,
        series: str | Iterable[str] | None,
        start: object,
        end: object,
        *,
        labels: Mapping[str, str] | None = None,
        columns: str | Iterable[str] | None = None,
        agg: Mapping[str, str | Iterable[str]] | None = None,
        step: str | Step | None = None,
        tz: str = "UTC",
        points: int | None = None,
        group_by: str | None = None,
        where: Mapping[str, object] | Iterable[tuple[str, str, object]] | None = None,
        limit: int | None = None,
        descending: bool = False,
        strategy: str = "auto",
        timeout: float | None = None,
        freshness: str | Freshness | None = None,
        cache: bool = True,
        caller: str = "",
        priority: str = "normal",
    ) -> Columns:
        """Return points, or bars of a step, in ``[start, end)``, ordered by (series, ts).

        ``series`` is a name, names, or None for all (that carry ``labels``). ``start`` and
        ``end`` are aware datetimes, numpy.datetime64 (UTC) or ISO 8601 text with an offset.
        Without ``step``: native points. ``step="5m"`` (s m h d w M y): bars, days and longer by
        the calendar of ``tz``; ``agg={"close": ["max"]}`` adds columns to the dataset's own;
        ``group_by`` merges the series that share a label's value. ``step="auto"`` lets the
        chooser pick the resolution, ``points=N`` picks at most N rows a series that keep the
        shape of the dataset's chart column. ``where`` tests points before they are
        aggregated: ``{"price": (">", 90), "side": "buy"}``. ``limit`` counts rows of the
        answer. ``strategy`` (direct, aggregated, downsampled) forces a road; the values are the
        same on each. After ``timeout`` seconds a statement is cancelled on the server, and no
        other block decoded.

        The answer may come from what the store remembers (not with ``cache=False``), no older
        than ``freshness`` says: ``"session"``, the default, sees every write made through this
        store and others' within ``max_age`` of the settings (1 s); ``"strong"`` every write
        committed before the call, for one more round trip; ``toolkit.bounded(30)`` what was
        there 30 seconds ago or later.

        With ``[admission]`` set, a read that is not answered from memory waits for its turn:
        ``priority`` (urgent, normal, batch) says how long at most, ``caller`` whose share it is.

        Raises QueryError, UnknownName, QueryTimeout, Unavailable, Overloaded.
        """
        query = build_query(
            dataset,
            series,
            start,
            end,
            labels=labels,
            columns=columns,
            agg=agg,
            step=step,
            tz=tz,
            points=points,
            group_by=group_by,
            where=where,
            limit=limit,
            descending=descending,
            strategy=strategy,
            timeout=timeout,
            freshness=freshness,
            cache=cache,
            caller=caller,
            priority=priority,
        )
        return drive(self._roads.read(query))

    def read_many(self, questions: Iterable[Mapping[str, Any]]) -> list[Columns]:
        """Answer several reads, in order, with as few statements as they need.

        A question is what :meth:`read` takes, by name: ``{"dataset": "candles", "series":
        "BTC-USD", "start": …, "end": …, "step": "1h"}``. Those that differ in their series only
        are one read, the others run at the same time. Fails as a whole if one of them does.
        """
        return drive(self._roads.read_many(questions))

    def explain(
        self,
        dataset: str,
        series: str | Iterable[str] | None,
        start: object,
        end: object,
        *,
        analyze: bool = False,
        **options: Any,
    ) -> Explanation:
        """Say how :meth:`read` would answer, and what PostgreSQL's EXPLAIN says of it.

        Takes what ``read`` takes; with ``analyze`` the statement is run.
        """
        query = build_query(dataset, series, start, end, **options)
        return drive(self._roads.explain(query, analyze))

    def latest(
        self,
        dataset: str,
        series: str | Iterable[str] | None = None,
        *,
        n: int = 1,
        labels: Mapping[str, str] | None = None,
        columns: str | Iterable[str] | None = None,
        step: str | None = None,
        tz: str = "UTC",
    ) -> Columns:
        """Return the newest ``n`` points (with ``step``: bars) of each series, oldest first.

        Costs about ``n`` index entries a series that is still being written.
        """
        query = latest_query(dataset, series, labels, columns, step, tz)
        return drive(self._roads.latest(query, n))

    def stream(
        self,
        dataset: str,
        series: str | Iterable[str] | None,
        start: object,
        end: object,
        *,
        rows: int = 65_536,
        **options: Any,
    ) -> Iterator[Columns]:
        """Yield what :meth:`read` would return in pieces of at most ``rows`` rows.

        All pieces come from one snapshot, which keeps vacuum from cleaning up what changed
        meanwhile: do not keep a stream open for hours. Memory is bounded by a piece.
        """
        query = build_query(dataset, series, start, end, **options)
        pieces = self._roads.stream(query, rows)
        try:
            while True:
                try:
                    piece = drive(pieces.__anext__())
                except StopAsyncIteration:
                    return
                yield piece
        finally:
            drive(pieces.aclose())

    def export(
        self,
        dataset: str,
        path: str | os.PathLike[str],
        series: str | Iterable[str] | None = None,
        start: object = None,
        end: object = None,
        *,
        labels: Mapping[str, str] | None = None,
        columns: str | Iterable[str] | None = None,
        step: str | None = None,
        tz: str = "UTC",
        overwrite: bool = False,
        on_progress: Callable[[ExportReport], None] = lambda report: None,
    ) -> ExportReport:
        """Write points, or bars of a step, to a Parquet file: whole, or not at all.

        ``series`` None means all (that carry ``labels``), ``start`` and ``end`` None all of
        time. Rows are ordered as in :meth:`stream`, come from one snapshot as there, and take
        some MB of memory however many they are. Every NULL is null, and decimals, categories
        and ``seq`` come as :meth:`Columns.to_arrow` has them: ``toolkit load`` reads all of it
        back bit for bit. A file that exists is refused without ``overwrite``.
        ``on_progress`` hears what is written so far.

        Raises ExportError where the file cannot be written.
        """
        query = export_query(
            dataset, series, start, end, labels=labels, columns=columns, step=step, tz=tz
        )
        return drive(self._roads.export(query, path, overwrite, on_progress))

    def delete(self, dataset: str, series: str | Iterable[str], start: object, end: object) -> int:
        """Delete the points of series in ``[start, end)`` and return how many there were."""
        return drive(self._roads.delete(dataset, series, start, end))

    def datasets(self) -> tuple[Dataset, ...]:
        """Return the datasets there are."""
        return drive(self._roads.datasets())

    def series(self, dataset: str, labels: Mapping[str, str] | None = None) -> tuple[Series, ...]:
        """Return the series of a dataset, those that carry all of ``labels``, by name."""
        return drive(self._roads.series(dataset, labels))

    def label(self, dataset: str, series: str, labels: Mapping[str, str | None]) -> dict[str, str]:
        """Give a series labels beside those it has (None takes one away); return all of them."""
        return drive(self._roads.label(dataset, series, labels))

    def token(self) -> str:
        """Return what stands for all that was written here: for :func:`toolkit.after` elsewhere."""
        return str(drive(self._roads.token()))

    def stats(self) -> dict[str, float]:
        """Return counters of this store: reads by strategy, rows, times, and its pool's."""
        return self._roads.stats()
