"""The other ways to the same rows: psycopg, pandas over SQLAlchemy, and ADBC."""

from __future__ import annotations

from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pandas as pd
import psycopg
from sqlalchemy import create_engine, text

from toolkit.errors import MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

PSYCOPG, PANDAS, ADBC = "psycopg rows", "pandas.read_sql", "ADBC"
TO_SQL, INGEST = "DataFrame.to_sql", "ADBC ingest"


class Peers:
    """One connection for each peer, kept open like a service keeps it; for one thread."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn = dsn
        self.schema = schema

    def __enter__(self) -> Peers:
        try:
            adbc: Any = import_module("adbc_driver_postgresql.dbapi")
        except ImportError:
            raise MissingExtra("adbc-driver-postgresql", "bench", "the benchmarks") from None
        self.psycopg = psycopg.connect(self.dsn, autocommit=True)
        self._engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(self.dsn)
        )
        self._pandas = self._engine.connect()
        self._adbc = adbc.connect(self.dsn, autocommit=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._adbc.close()
        self._pandas.close()
        self._engine.dispose()
        self.psycopg.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Fetch as a list of tuples, in the binary protocol."""
        with self.psycopg.cursor(binary=True) as cursor:
            return cursor.execute(sql.encode()).fetchall()

    def frame(self, sql: str) -> pd.DataFrame:
        """Fetch as a DataFrame."""
        return pd.read_sql(text(sql), self._pandas)

    def arrow(self, sql: str) -> pa.Table:
        """Fetch as an Arrow table."""
        with self._adbc.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

    def ingest(self, table: pa.Table, dataset: str) -> None:
        """Append an Arrow table; the columns are the table's own, series_id among them."""
        with self._adbc.cursor() as cursor:
            cursor.adbc_ingest(dataset, table, mode="append", db_schema_name=self.schema)

    def to_sql(self, frame: pd.DataFrame, dataset: str) -> None:
        """Append a DataFrame, many rows an INSERT."""
        frame.to_sql(
            dataset,
            self._pandas,
            schema=self.schema,
            if_exists="append",
            index=False,
            method="multi",
            chunksize=5_000,  # seven parameters a row, 65,535 a statement
        )
        self._pandas.commit()
