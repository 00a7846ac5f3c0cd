"""The road of a delete: rows, and what blocks hold of the same time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np

from toolkit import changes, late, moves
from toolkit.batches import parts
from toolkit.catalog import Entry, Series
from toolkit.directory import Directory
from toolkit.drivers import BULK_TIMEOUT, Driver, Params, Transaction
from toolkit.errors import SchemaError
from toolkit.merging import Run, run_here
from toolkit.statements import compose
from toolkit.timegrid import Span, to_datetime


class Eraser:
    """Deletes of one store; holds no state of its own."""

    def __init__(self, driver: Driver, directory: Directory, run: Run = run_here) -> None:
        self._driver = driver
        self._directory = directory
        self._run = run

    async def delete(self, dataset: str, names: tuple[str, ...], span: Span) -> int:
        """Delete the points of series in a span, and return how many there were."""
        # once more it would delete what others have written to the range meanwhile
        return await self._driver.again(
            lambda: self._delete_known(dataset, names, span), is_idempotent=False
        )

    async def _delete_known(self, dataset: str, names: tuple[str, ...], span: Span) -> int:
        try:
            return await self._delete(dataset, names, span)
        except (changes.SeriesGone, SchemaError):
            self._directory.catalog.forget()
        return await self._delete(dataset, names, span)

    async def _delete(self, dataset: str, names: tuple[str, ...], span: Span) -> int:
        entry = await self._directory.entry(dataset)
        changes.refuse_frozen(entry, span.start, entry.frozen_before)
        found = await self._directory.series(entry, names)
        series = list({s.id: s for s in found}.values())
        ids = np.unique([s.id for s in series])
        grid = entry.dataset.log_step
        assert grid.width is not None
        params: Params = {
            "ids": ids.tolist(),
            "start": to_datetime(span.start),
            "end": to_datetime(span.end),
            "width": timedelta(microseconds=grid.width),
            "origin": to_datetime(grid.origin),
        }
        async with self._driver.transaction(timeout=BULK_TIMEOUT) as transaction:
            await moves.lock(transaction, entry, ids.tolist(), span)
            count = await self._cut_out(transaction, entry, series, span)
            if entry.dataset.changelog == "writer":
                statement = self._text(entry, "delete_range_logged")
                count += (await transaction.fetch(statement, params))[0][0]
            else:
                statement = self._text(entry, "delete_range")
                count += await transaction.execute(statement, params)
            await changes.check_alive(transaction, entry, ids, span.start)
        return count

    async def _cut_out(
        self, transaction: Transaction, entry: Entry, series: Sequence[Series], span: Span
    ) -> int:
        """Delete from blocks, log what that was, and return how many points."""
        edge = await late.cold_to(transaction, entry)
        if edge is None or edge <= span.start:
            return 0
        await moves.begin(transaction, late.PATIENCE)
        count = 0
        for one in series:
            lost, ts = await late.cut_out(self._driver, transaction, entry, one, span, self._run)
            count += lost
            batch = changes.at(entry, one, ts)
            await changes.log(transaction, entry, batch, np.array([one.id], np.int32))
        await transaction.fetch(compose("blocks/end_move"))
        return count

    def _text(self, entry: Entry, statement: str) -> bytes:
        def make() -> bytes:
            return compose(f"write/{statement}", **parts(entry, False, None))

        text: bytes = entry.once(("write", statement), make)
        return text
