"""Peers that keep a frame in a folder, with no server: ArcticDB's LMDB, DuckDB over Parquet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.bench.measure import Contender, Missing, Target
from toolkit.errors import MissingExtra

ARCTIC, DUCKDB = "ArcticDB", ("DuckDB, to numpy", "DuckDB, to Arrow")
_WANTED = {"arcticdb": "arctic", "duckdb": "bench"}
_NAME = "bars"


class Files:
    """A folder with one frame in it, for as long as the ``with`` block lasts."""

    def __init__(self, folder: Path, frame: pd.DataFrame) -> None:
        self.parquet = folder / "bars.parquet"
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), self.parquet)
        self.missing: dict[str, str] = {}
        self._frame = frame.set_index("ts")
        self._library = self._duckdb = None
        if (arcticdb := self._package("arcticdb", ARCTIC)) is not None:
            with _old_names():
                store = arcticdb.Arctic(f"lmdb://{folder / 'arctic'}")
                self._library = store.create_library("bench")
                self.write_arctic()
        if (duckdb := self._package("duckdb", *DUCKDB)) is not None:
            self._duckdb = duckdb.connect(config={"threads": os.cpu_count() or 1})

    def _package(self, name: str, *peers: str) -> Any:
        try:
            with _old_names():
                return import_module(name)
        except ImportError:
            extra = MissingExtra(name, _WANTED[name], "the benchmarks")
            self.missing |= dict.fromkeys(peers, str(extra))
            return None

    def close(self) -> None:
        if self._duckdb is not None:
            self._duckdb.close()

    def write_arctic(self) -> None:
        """Write the frame again, as a new version; the one before goes."""
        library: Any = self._library
        with _old_names():
            library.write(_NAME, self._frame, prune_previous_versions=True)

    def read_arctic(self) -> pd.DataFrame:
        """Return the frame as ArcticDB has it."""
        library: Any = self._library
        with _old_names():
            found: pd.DataFrame = library.read(_NAME).data
        return found

    def read_numpy(self) -> dict[str, Any]:
        """Return the Parquet file as DuckDB's dict of arrays."""
        arrays: dict[str, Any] = self._asked().fetchnumpy()
        return arrays

    def read_arrow(self) -> pa.Table:
        """Return the Parquet file as an Arrow table, by DuckDB."""
        found: pa.Table = self._asked().to_arrow_table()
        return found

    def _asked(self) -> Any:
        duckdb: Any = self._duckdb
        return duckdb.read_parquet(str(self.parquet))

    def readers(self, targets: dict[str, Target]) -> tuple[list[Contender], tuple[Missing, ...]]:
        """Return who reads the frame, and who cannot."""
        ways = {
            ARCTIC: lambda turn: self.read_arctic(),
            DUCKDB[0]: lambda turn: self.read_numpy(),
            DUCKDB[1]: lambda turn: self.read_arrow(),
        }
        there = [Contender(name, act) for name, act in ways.items() if name not in self.missing]
        return there, self.absent(targets)

    def absent(self, targets: dict[str, Target]) -> tuple[Missing, ...]:
        """Return the peers that are not installed, with what they are held to."""
        return tuple(Missing(n, why, targets.get(n)) for n, why in self.missing.items())


@contextmanager
def files(frame: pd.DataFrame) -> Iterator[Files]:
    """Yield a folder of its own with a frame in it."""
    with TemporaryDirectory(prefix="toolkit-bench-") as folder:
        found = Files(Path(folder), frame)
        try:
            yield found
        finally:
            found.close()


@contextmanager
def _old_names() -> Iterator[None]:
    """Let ArcticDB call what pandas has since renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
