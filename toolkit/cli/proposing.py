"""Looks at the beginning of a file, and writes down the dataset proposed for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.loading.check import format_of
from toolkit.cli.loading.columnar import ColumnarFile
from toolkit.cli.loading.fitting import TIME_NAMES, read_wish
from toolkit.cli.loading.pieces import ROWS
from toolkit.dataset import Aggregate, Column, Dataset
from toolkit.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_]+")


def sample(
    path: Path, maps: Sequence[str] = (), format: str | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Return the first rows of a file under names a dataset can have, and what was renamed."""
    import pandas as pd

    kind = format or format_of(path)
    if kind == "csv":
        try:
            frame = pd.read_csv(path, nrows=ROWS, sep=None, engine="python", encoding="utf-8-sig")
        except (ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    else:
        file = ColumnarFile(path, kind)
        piece = next(file.pieces(file.names), None)
        if piece is None:
            raise InputError(f"{path}: the file has no rows to propose from")
        frame = pd.DataFrame({n: c.to_pandas() for n, c in piece.columns.items()})
    return _renamed(path, frame, maps)


def _renamed(
    path: Path, frame: pd.DataFrame, maps: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    import pandas as pd

    wish = read_wish(maps)
    for source in (*wish.given.values(), *wish.left_out):
        if source not in frame.columns:
            raise InputError(f"{path}: --map: the file has no column {source!r}")
    frame = frame.drop(columns=list(wish.left_out))
    names = {source: target for target, source in wish.given.items()}
    for column in frame.columns:
        clean = _NOT_IN_A_NAME.sub("_", str(column).strip().lower()).strip("_")[:40]
        names.setdefault(column, clean if clean[:1].isalpha() else f"c_{clean}"[:40])
    times = [c for c in frame.columns if names[c] in TIME_NAMES]
    if "ts" not in names.values() and len(times) == 1:
        names[times[0]] = "ts"
    notes = [f"column {c!r} is called {n}" for c, n in names.items() if c != n]
    empty = [c for c in frame.columns if frame[c].isna().all() and names[c] != "ts"]
    if empty:
        notes.append(f"left out, empty: {', '.join(map(repr, empty))}")
    frame = frame.drop(columns=empty).rename(columns=names)
    if "ts" in frame and not pd.api.types.is_numeric_dtype(frame["ts"]):
        frame["ts"] = pd.to_datetime(frame["ts"], utc=True, format="ISO8601")
    return frame, notes


def migration_of(dataset: Dataset, file: str) -> str:
    """Return the text of a migration that makes ``dataset``."""
    constant = dataset.name.upper()
    return f'''"""{dataset.name}: proposed for {file}; read it before you use it."""

from alembic import op

import toolkit.operations  # registers op.create_dataset
from toolkit import Aggregate, Column, Dataset

revision = "{dataset.name}_1"
down_revision = None

{constant} = {declaration_of(dataset)}


def upgrade() -> None:
    op.create_dataset({constant})


def downgrade() -> None:
    op.drop_dataset({constant})
'''


def declaration_of(dataset: Dataset) -> str:
    """Return the Python that declares ``dataset``; ``eval`` of it gives an equal one.

    >>> price = Aggregate("price", "last", "price")
    >>> print(declaration_of(Dataset("fills", (Column("price"),), (price,))))
    Dataset(
        "fills",
        columns=(
            Column("price"),
        ),
        aggregates=(
            Aggregate("price", "last", ("price",)),
        ),
        ladder=("5m", "1h", "1d"),
        partition="1M",
        chart="price",
    )
    """
    lines = ["Dataset(", f"    {_quoted(dataset.name)},", "    columns=("]
    lines += [f"        {_column(c)}," for c in dataset.columns]
    lines += ["    ),", "    aggregates=("]
    lines += [f"        {_aggregate(a)}," for a in dataset.aggregates]
    lines += [
        "    ),",
        f"    ladder={_tuple(dataset.ladder)},",
        f"    partition={_quoted(dataset.partition)},",
    ]
    lines += ["    has_seq=True,"] if dataset.has_seq else []
    lines += [f"    chart={_quoted(dataset.chart)},"]
    after = dataset.compress_after
    lines += [f"    compress_after={_quoted(after)},"] if after else []
    lines += [f"    retain={dataset.retain!r},"] if dataset.retain.to_mapping() else []
    lines += [")"]
    return "\n".join(lines)


def _column(column: Column) -> str:
    kind = "" if column.type == "float" else f", {_quoted(column.type)}"
    return f"Column({_quoted(column.name)}{kind})"


def _aggregate(aggregate: Aggregate) -> str:
    by = f", {_quoted(aggregate.by)}" if aggregate.by else ""
    return (
        f"Aggregate({_quoted(aggregate.name)}, {_quoted(aggregate.kind)}, "
        f"{_tuple(aggregate.of)}{by})"
    )


def _quoted(text: str) -> str:
    return f'"{text}"'  # names and steps: letters, digits, _ and parentheses only


def _tuple(texts: Sequence[str]) -> str:
    inner = ", ".join(map(_quoted, texts))
    return f"({inner},)" if len(texts) == 1 else f"({inner})"
