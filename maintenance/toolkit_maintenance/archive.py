"""Parquet files of what is about to be dropped: whole and counted, or nothing is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from toolkit.dataset import Dataset
from toolkit.directory import source_of
from toolkit.errors import DatabaseError, ExportError, MissingExtra, counted
from toolkit.exporting import unfinished
from toolkit.statements import compose
from toolkit.timegrid import Span, to_datetime
from toolkit_maintenance.ground import Ground


def path_of(ground: Ground, dataset: Dataset, span: Span) -> Path:
    """Return the file that the points of a range go to: each schema has a folder of its own.

    It has one name, whichever of its tables are left: that of its partition of rows.
    """
    source = _source(ground, dataset)
    parts = [quote(source[k], safe=" ").replace(".", "%2E") for k in ("database", "schema")]
    name = f"{dataset.name}_p{to_datetime(span.start):%Y%m%d}.parquet"
    return Path(ground.options.retain_export, *parts, name)


def archive(
    ground: Ground, dataset: Dataset, span: Span, path: Path, rows: str | None, blocks: str | None
) -> int:
    """Write the points of a span, which nobody writes to any more, to a file; return how many.

    ``rows`` and ``blocks`` are the tables that hold them: their own count is what the file's is
    held against. A file that is there and has as many points of this span is kept; more, where
    a run was cut after it had dropped the rows of what it had written.
    """
    least, most = _count(ground, rows, blocks)
    source = _source(ground, dataset)
    _tidy(ground.options.retain_export, path)
    if path.exists():
        found = _points_in(path, dataset, span, source)
        if found < least or (found > most and rows is not None):
            raise ExportError(
                f"{path} exists and holds {counted(found, 'points')} of {span}, not the {most:,} "
                "that are to be dropped; move it away, or name another folder"
            )
        return found
    low, high = to_datetime(span.start), to_datetime(span.end)
    ground.store.export(dataset.name, path, None, low, high)
    found = _points_in(path, dataset, span, source)
    if not least <= found <= most:
        # a replica that is behind, or somebody who has written past the toolkit
        path.unlink()
        raise ExportError(
            f"{path} got {counted(found, 'points')} of {span}, and {most:,} are to be dropped; "
            "nothing was dropped, try again"
        )
    return found


def _tidy(folder: str, path: Path) -> None:
    """Make what is below the folder, and take away what an export that was killed has left there.

    The folder itself is not made: it may be a disk that is not mounted.
    """
    if not Path(folder).is_dir():
        raise ExportError(f"there is no folder {folder}; make it, or set retain_export to another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in unfinished(path):  # of nobody else: the job runs once at a time
            left.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise ExportError(f"{path.parent}: it cannot be written to: {why}") from error


def _source(ground: Ground, dataset: Dataset) -> dict[str, Any]:
    """Return whose the points are, as an export of them says it."""
    statement = compose("session/identify_source", dataset=ground.table("dataset"))
    row = ground.direct.fetch(statement, {"dataset": dataset.name})[0]
    try:
        sysid = ground.direct.fetch(compose("session/identify_server"))[0][0]
    except DatabaseError:  # not told
        sysid = None
    return source_of(ground.schema, row, sysid)


def _count(ground: Ground, rows: str | None, blocks: str | None) -> tuple[int, int]:
    """Return how many points there are at least and at most: a row may stand for one of a block."""
    counts = []
    for table, how in ((rows, "count_points"), (blocks, "count_block_points")):
        if table is not None:
            statement = compose(f"retention/{how}", table=ground.table(table))
            counts.append(int(ground.direct.fetch(statement, timeout=ground.timeout)[0][0]))
    return max(counts, default=0), sum(counts)


def _points_in(path: Path, dataset: Dataset, span: Span, source: dict[str, Any]) -> int:
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

    held = (said["dataset"]["name"], said["start"], said["end"])
    if held != (dataset.name, iso(span.start), iso(span.end)):
        raise ExportError(
            f"{path} holds {held[0]} from {held[1]} to {held[2]}; move it away, or name "
            "another folder"
        )
    theirs = said.get("source") or {}
    # a system that is not told is not another one
    told = [key for key in source if key != "system" or None not in (theirs.get(key), source[key])]
    if any(theirs.get(key) != source[key] for key in told):
        of = f"database {theirs.get('database')!r}, schema {theirs.get('schema')!r}"
        raise ExportError(
            f"{path} holds points of another {dataset.name!r} ({of}), perhaps of one that was "
            "dropped or restored since; move it away, or name another folder"
        )
    return int(footer.num_rows)
