"""Reads Parquet and Feather, some row groups or record batches at a time."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from toolkit.cli.loading.pieces import ROWS, Piece
from toolkit.errors import InputError, MissingExtra


class ColumnarFile:
    """A Parquet or Feather file; its size is counted in rows."""

    def __init__(self, path: Path, kind: str) -> None:
        try:
            pa = import_module("pyarrow")
        except ImportError:
            raise MissingExtra("pyarrow", "frames", f"reading {path.name}") from None
        self.path = path
        self._kind = kind
        try:
            if kind == "parquet":
                parquet = import_module("pyarrow.parquet").ParquetFile(path)
                self.size, schema = parquet.metadata.num_rows, parquet.schema_arrow
            else:
                schema = self._feather().schema
                self.size = sum(b.num_rows for b in self._feather_batches())
        except (pa.ArrowInvalid, OSError) as error:
            said = str(error).splitlines()[0]
            raise InputError(f"{path}: not a whole {kind.title()} file: {said}") from None
        self.names: tuple[str, ...] = tuple(schema.names)
        for name in self.names:
            if self.names.count(name) > 1:
                raise InputError(f"{path}: two columns called {name!r}")

    def pieces(self, wanted: tuple[str, ...]) -> Iterator[Piece]:
        """Yield about ``ROWS`` rows at a time; an error names its row, counted from 1."""
        pa = import_module("pyarrow")
        done, held, rows = 0, [], 0
        try:
            for batch in self._batches(wanted):
                held.append(batch)
                rows += batch.num_rows
                while rows >= ROWS:
                    table = pa.Table.from_batches(held)
                    yield self._piece(table.slice(0, ROWS), done)
                    done, rows = done + ROWS, rows - ROWS
                    held = table.slice(ROWS).to_batches()
            if rows:
                yield self._piece(pa.Table.from_batches(held), done)
        except (pa.ArrowInvalid, OSError) as error:
            said = str(error).splitlines()[0]
            raise InputError(f"{self.path}, after row {done}: {said}") from None

    def _piece(self, table: Any, done: int) -> Piece:
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        return Piece(
            columns, table.num_rows, done + table.num_rows, lambda row: f"row {done + row + 1}"
        )

    def _batches(self, wanted: tuple[str, ...]) -> Iterator[Any]:
        if self._kind == "parquet":
            parquet = import_module("pyarrow.parquet").ParquetFile(self.path)
            yield from parquet.iter_batches(batch_size=65_536, columns=list(wanted))
        else:
            for batch in self._feather_batches():
                yield batch.select(list(wanted))

    def _feather(self) -> Any:
        """Open the file; the first version of the format can only be read whole."""
        pa = import_module("pyarrow")
        with self.path.open("rb") as file:
            is_first = file.read(4) == b"FEA1"
        if is_first:
            return import_module("pyarrow.feather").read_table(self.path)
        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    def _feather_batches(self) -> Iterator[Any]:
        source = self._feather()
        if hasattr(source, "to_batches"):
            yield from source.to_batches()
        else:
            for number in range(source.num_record_batches):
                yield source.get_batch(number)
