"""Parquet files of what is about to be dropped: whole and counted, or nothing is dropped."""

from __future__ import annotations

from pathlib import Path

from toolkit.dataset import Dataset
from toolkit.errors import ExportError, MissingExtra
from toolkit.statements import compose
from toolkit.timegrid import Span, to_datetime
from toolkit_maintenance.ground import Ground


def path_of(folder: str, table: str) -> Path:
    """Return the file that the points of a partition go to."""
    return Path(folder) / f"{table}.parquet"


def archive(
    ground: Ground, dataset: Dataset, span: Span, path: Path, rows: str | None, blocks: str | None
) -> int:
    """Write the points of a span, which nobody writes to any more, to a file; return how many.

    ``rows`` and ``blocks`` are the tables that hold them: their own count is what the file's is
    held against. A file that is there and has as many points of this span is kept.
    """
    least, most = _count(ground, rows, blocks)
    if path.exists():
        found = _points_in(path, dataset, span)
        if not least <= found <= most:
            raise ExportError(
                f"{path} exists and holds {found:,} points of {span}, not the {most:,} that are to "
                "be dropped; move it away, or name another folder"
            )
        return found
    low, high = to_datetime(span.start), to_datetime(span.end)
    ground.store.export(dataset.name, path, None, low, high)
    found = _points_in(path, dataset, span)
    if not least <= found <= most:
        # a replica that is behind, or somebody who has written past the toolkit
        path.unlink()
        raise ExportError(
            f"{path}: {found:,} points of {span} were written, and {most:,} are to be dropped; "
            "nothing was dropped, try again"
        )
    return found


def _count(ground: Ground, rows: str | None, blocks: str | None) -> tuple[int, int]:
    """Return how many points there are at least and at most: a row may stand for one of a block."""
    counts = []
    for table, how in ((rows, "count_points"), (blocks, "count_block_points")):
        if table is not None:
            statement = compose(f"retention/{how}", table=ground.table(table))
            counts.append(int(ground.direct.fetch(statement, timeout=ground.timeout)[0][0]))
    return max(counts, default=0), sum(counts)


def _points_in(path: Path, dataset: Dataset, span: Span) -> int:
    """Return how many points of a span a file says it has; its footer was written last."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("pyarrow", "frames", "an export to Parquet") from None
    import json

    try:
        footer = parquet.read_metadata(path)
        said = json.loads((footer.metadata or {})[b"toolkit"])
    except (OSError, KeyError, ValueError, pa.ArrowInvalid) as error:
        raise ExportError(f"{path}: this is no export of ours: {error}; move it away") from error
    from toolkit.timegrid import iso

    theirs = (said["dataset"]["name"], said["start"], said["end"])
    if theirs != (dataset.name, iso(span.start), iso(span.end)):
        raise ExportError(
            f"{path} holds {theirs[0]} from {theirs[1]} to {theirs[2]}; move it away, or name "
            "another folder"
        )
    return int(footer.num_rows)
