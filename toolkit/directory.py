"""Names to ids: what the catalog remembers, looked up in the database where it does not."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Any

from toolkit import ddl
from toolkit.catalog import REVISION, VERSION_TABLE, Catalog, Entry, Series
from toolkit.dataset import Dataset
from toolkit.drivers import Driver, Params, Rows, Server
from toolkit.errors import DatabaseError, QueryError, QueryTimeout, SchemaError, UnknownName
from toolkit.statements import Part, compose, name

_log = logging.getLogger("toolkit.directory")
_MAX_AGE = 60.0  # seconds
_LEAST_TIME = 0.001  # seconds that a statement gets, however late it is


def source_of(schema: str, row: Sequence[Any], sysid: int | None) -> dict[str, Any]:
    """Return whose points they are, of ``session/identify_source`` and who the server is."""
    database, oid, declared_in, dataset_id = row
    return {
        "system": None if sysid is None else str(sysid),  # too many digits for some readers
        "database": database,
        "schema": schema,
        "ids": [oid, declared_in, dataset_id],
    }


@dataclass(slots=True)
class _Loaded:
    """When the names were read, from whichever node."""

    at: float


class Directory:
    """The names of one schema on one server; safe to share as its parts are.

    ``timeout`` bounds a whole look-up, in seconds, however many statements that takes.
    """

    def __init__(
        self,
        driver: Driver,
        catalog: Catalog,
        schema: str,
        *,
        allow_newer_schema: bool = False,
        clock: Callable[[], float] = time.monotonic,
        may_write: bool = True,
    ) -> None:
        self.driver = driver
        self.catalog = catalog
        self.schema = schema
        self.may_write = may_write
        self._allow_newer = allow_newer_schema
        self._clock = clock
        self._loaded = _Loaded(clock())

    def inside(self, driver: Driver) -> Directory:
        """Return the same names for one snapshot, through its driver: there nothing grows old."""
        return Directory(
            driver,
            self.catalog,
            self.schema,
            allow_newer_schema=self._allow_newer,
            clock=float,
            may_write=False,
        )

    def over(self, driver: Driver) -> Directory:
        """Return the same names as another node has them, which only reads."""
        found = Directory(
            driver,
            self.catalog,
            self.schema,
            allow_newer_schema=self._allow_newer,
            clock=self._clock,
            may_write=False,
        )
        found._loaded = self._loaded
        return found

    async def entry(self, dataset: str, *, timeout: float | None = None) -> Entry:
        """Return a dataset's entry, or say which datasets there are.

        What is remembered is read again once a minute: a dataset may have been dropped and
        made anew by somebody else. Who finds nothing in it does not wait that long: see
        :meth:`confirm`.
        """
        found = self.remembered(dataset)
        if found is None:
            await self.load(timeout=timeout)
            found = self.catalog.known(dataset)
        return found

    def remembered(self, dataset: str) -> Entry | None:
        """Return a dataset's entry if it need not be read again."""
        if self._clock() - self._loaded.at > _MAX_AGE:
            return None
        return self.catalog.entry(dataset)

    async def load(self, *, timeout: float | None = None) -> tuple[Entry, ...]:
        """Read all datasets from the database; refuse a schema this version does not know."""
        left = self._counting_down(timeout)
        sysid = await self.identify(timeout=left())
        await self._check_revision(left())
        rows = await self.run("catalog/list_datasets", "dataset", "rollup", timeout=left())
        self._loaded.at = self._clock()
        self.catalog.remember(
            Entry.from_row((row[0], row[1], row[2], row[3], row[4]), self.schema, sysid)
            for row in rows
        )
        return self.catalog.entries()

    async def declare(self, dataset: str, **fields: Any) -> Dataset:
        """Change fields of a dataset's declaration, and return what it is then."""
        entry = await self.confirmed(dataset)
        wanted = replace(entry.dataset, **fields)  # says what cannot be
        async with self.driver.transaction() as transaction:
            for statement in ddl.set_fields(wanted, entry.schema, fields):
                await transaction.execute(statement.encode())
        await self.load()
        return wanted

    async def confirm(
        self, entry: Entry, series: Mapping[int, str], *, timeout: float | None = None
    ) -> None:
        """Raise SchemaError if series by id, or without any their dataset, are not ours any more.

        For who found no points under them: what is dropped and made anew by somebody else has
        other ids, and the old ones answer with nothing. Costs a round trip.
        """
        dataset = entry.dataset.name
        params: Params
        if series:  # each of them holds on to its dataset
            params = {"ids": list(series)}
            text = "catalog/list_series_by_id"
            rows = await self.run(text, "series", params=params, timeout=timeout)
            is_current = {row[0]: row[1] for row in rows} == series
        else:
            params = {"dataset_id": entry.id, "name": dataset}
            rows = await self.run("catalog/is_current", "dataset", params=params, timeout=timeout)
            is_current = rows[0][0]
        if is_current:
            return
        _log.info("dataset %s or series of it were made anew", dataset)
        self.catalog.forget()
        raise SchemaError(
            f"dataset {dataset!r} or series of it were made anew meanwhile; ask again"
        )

    async def confirmed(self, dataset: str) -> Entry:
        """Return a dataset's entry as the database has it now; a statement more than ``entry``."""
        entry = await self.entry(dataset)
        try:
            await self.confirm(entry, {})
        except SchemaError:
            entry = await self.entry(dataset)
        return entry

    async def identify(self, *, timeout: float | None = None) -> int | None:
        """Return the system identifier of the server as it is now; None where it is not told.

        Transaction ids, and with them every cursor, mean something on the server they come from
        only, and a database can be restored elsewhere under an address that stays.
        """
        try:
            rows = await self.run("session/identify_server", timeout=timeout)
        except QueryTimeout:
            raise
        except (DatabaseError, SchemaError) as error:
            _log.debug("the server does not tell its system identifier: %s", error)
            return None
        sysid: int = rows[0][0]
        return sysid

    async def source(self, dataset: str) -> dict[str, Any]:
        """Return whose a dataset's points are, as an export says it."""
        rows = await self.run("session/identify_source", "dataset", params={"dataset": dataset})
        if not rows:
            raise UnknownName("dataset", dataset, ())
        return source_of(self.schema, rows[0], await self.identify())

    async def _check_revision(self, timeout: float | None) -> None:
        try:
            rows = await self.run("catalog/read_version", VERSION_TABLE, timeout=timeout)
        except SchemaError:
            rows = []
        revision = rows[0][0] if rows else None
        if revision is None:
            raise SchemaError(
                f"schema {self.schema!r} of this database is not migrated; run: toolkit migrate up"
            )
        if revision < REVISION:
            raise SchemaError(
                f"schema {self.schema!r} is at revision {revision}, this version needs {REVISION}; "
                "run: toolkit migrate up"
            )
        if revision > REVISION and not self._allow_newer:
            raise SchemaError(
                f"schema {self.schema!r} is at revision {revision}, newer than this version knows "
                f"({REVISION}); upgrade the package, or set allow_newer_schema = true "
                "while a deployment is under way"
            )

    async def series(
        self, entry: Entry, names: Sequence[str], *, timeout: float | None = None
    ) -> list[Series]:
        """Return series by name, in the order given, or name one that does not exist."""
        found, missing = self.catalog.series(entry, names)
        if not missing:
            return found
        left = self._counting_down(timeout)
        await self._find(entry, missing, left())
        found, missing = self.catalog.series(entry, names)
        if missing:
            known = [s.name for s in await self.list_series(entry, timeout=left())]
            raise UnknownName("series", missing[0], known, f"dataset {entry.dataset.name!r}")
        return found

    async def _find(self, entry: Entry, names: Sequence[str], timeout: float | None = None) -> None:
        params = {"dataset_id": entry.id, "names": list(names)}
        rows = await self.run("catalog/find_series", "series", params=params, timeout=timeout)
        self.catalog.add_series(entry, (Series(*row) for row in rows))

    async def list_series(
        self,
        entry: Entry,
        labels: Mapping[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[Series]:
        """Return the series that carry all of ``labels``, by name."""
        left = self._counting_down(timeout)
        params = {"dataset_id": entry.id, "labels": json.dumps(dict(labels or {}))}
        rows = await self.run("catalog/list_series", "series", params=params, timeout=left())
        found = [Series(*row) for row in rows]
        if not found:
            await self.confirm(entry, {}, timeout=left())
        self.catalog.add_series(entry, found)
        return found

    async def series_by_id(
        self, entry: Entry, ids: Sequence[int], *, timeout: float | None = None
    ) -> dict[int, Series]:
        """Return series by id as the database has them now; SchemaError if one is gone."""
        params = {"ids": list(ids)}
        rows = await self.run("catalog/list_series_by_id", "series", params=params, timeout=timeout)
        found = {row[0]: Series(*row) for row in rows}
        if len(found) < len(set(ids)):
            self.catalog.forget()
            raise SchemaError(
                f"series of dataset {entry.dataset.name!r} are gone meanwhile; ask again"
            )
        self.catalog.add_series(entry, found.values())
        return found

    async def names(
        self, entry: Entry, ids: Sequence[int], *, timeout: float | None = None
    ) -> dict[int, str]:
        """Return the names of series ids."""
        known = self.catalog.names(ids)
        missing = [i for i in ids if i not in known]
        if missing:
            fresh = await self.series_by_id(entry, missing, timeout=timeout)
            known |= {i: s.name for i, s in fresh.items()}
        return known

    async def make_series(
        self,
        entry: Entry,
        steps: Mapping[str, int | None],
        *,
        timeout: float | None = None,
    ) -> dict[str, Series]:
        """Return series by name, made where missing; ``steps`` gives each its step in µs.

        A series whose recorded step is coarser than the one given takes the finer one.
        """
        left = self._counting_down(timeout)
        names = sorted(steps)
        found, missing = self.catalog.series(entry, names)
        if missing:
            await self._find(entry, missing, left())
            found, missing = self.catalog.series(entry, names)
        if missing:
            params: Params = {
                "dataset_id": entry.id,
                "names": missing,
                "steps": [_interval(steps[n]) for n in missing],
            }
            try:
                await self._put("catalog/add_series", params, left())
            except DatabaseError as error:
                if error.sqlstate == "23503":  # there is no such dataset any more
                    await self.confirm(entry, {}, timeout=left())
                raise
            await self._find(entry, missing, left())
            found, _ = self.catalog.series(entry, names)
        finer = [
            (s, step)
            for s in found
            if (step := steps[s.name]) is not None and (s.step is None or step < s.step)
        ]
        if finer:
            params = {
                "ids": [s.id for s, _ in finer],
                "steps": [_interval(step) for _, step in finer],
            }
            await self._put("catalog/set_step", params, left())
            await self._find(entry, [s.name for s, _ in finer], left())
        found, _ = self.catalog.series(entry, names)
        return {s.name: s for s in found}

    async def set_labels(
        self, entry: Entry, series: str, labels: Mapping[str, str | None]
    ) -> dict[str, str]:
        """Merge labels into a series' own; None takes one away. Returns what it has then."""
        for key, value in labels.items():
            if not isinstance(key, str) or not isinstance(value, str | None):
                raise QueryError(f"labels: {key!r}: {value!r} must both be text")
        await self.series(entry, [series])
        params = {"dataset_id": entry.id, "name": series, "labels": json.dumps(dict(labels))}
        rows = await self.run("catalog/set_labels", "series", params=params)
        if not rows:
            self.catalog.forget()
            raise SchemaError(
                f"series {series!r} of dataset {entry.dataset.name!r} is gone meanwhile; ask again"
            )
        await self._find(entry, [series])
        result: dict[str, str] = rows[0][0]
        return result

    async def server(self) -> Server:
        return await self.driver.open()

    async def run(
        self,
        statement: str,
        *tables: str,
        params: Params | None = None,
        timeout: float | None = None,
    ) -> Rows:
        """Run a statement whose open places are tables of the schema."""
        text = _statement(statement, self.schema, tables)
        return await self.driver.fetch(text, params, timeout=timeout)

    async def _put(self, statement: str, params: Params, timeout: float | None) -> None:
        text = _statement(statement, self.schema, ("series",))
        async with self.driver.transaction(timeout=timeout) as transaction:
            await transaction.execute(text, params)

    def _counting_down(self, timeout: float | None) -> Callable[[], float | None]:
        """Return what tells how much of a timeout is left, from now on."""
        if timeout is None:
            return lambda: None
        until = self._clock() + timeout
        return lambda: max(until - self._clock(), _LEAST_TIME)


@lru_cache(maxsize=256)
def _statement(statement: str, schema: str, tables: tuple[str, ...]) -> bytes:
    parts: dict[str, Part] = {table: name(schema, table) for table in tables}
    return compose(statement, **parts)


def _interval(us: int | None) -> timedelta | None:
    return timedelta(microseconds=us) if us is not None else None
