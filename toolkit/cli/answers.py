"""Prints or writes an answer: a table, JSON, CSV or Parquet."""

from __future__ import annotations

import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from toolkit.cli.render import echo_line, echo_table, note, plain
from toolkit.columns import NULL_INT, Columns, is_null
from toolkit.errors import MissingExtra, QueryError, counted
from toolkit.strategy import Plan
from toolkit.timegrid import to_datetime, zone

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 40
_BLOCK = 10_000  # rows that are turned into Python objects at a time

Writer = Callable[[Columns, IO[bytes]], None]


def echo_answer(columns: Columns, tz: str) -> None:
    """Print an answer as a table of at most 40 rows, and how it was come by."""
    half = _SHOWN // 2
    is_cut = len(columns) > _SHOWN
    places = np.arange(len(columns))
    if is_cut:
        places = np.concatenate([places[:half], places[-half:]])
    picked = columns.select(places)
    headers = ["series", f"ts ({tz})", *(["seq"] if columns.seq is not None else []), *columns]
    rows = list(_cells(picked, tz))
    if is_cut:
        rows.insert(half, ["…"] * len(headers))
    numbers = [n for n in columns if columns.types[n] not in ("category", "bool")]
    echo_table(headers, rows, numbers=[*numbers, "seq"])
    echo_line(_summary(columns))


def _summary(columns: Columns) -> str:
    rows, series = len(columns), len(np.unique(columns.series))
    answer = f"{counted(rows, 'rows')} of {series:,} series"
    if not isinstance(columns.plan, Plan):
        return answer
    plan = columns.plan
    return f"{answer}; {counted(plan.rows, 'rows')} touched, {plan.elapsed_ms:.1f} ms\n{plan}"


def _cells(columns: Columns, tz: str) -> Iterator[list[str]]:
    where = zone(tz)
    instants = columns.instants.tolist()
    fine = 1_000_000 if any(t % 60_000_000 for t in instants) else 60_000_000
    spec = "microseconds" if any(t % fine for t in instants) else "seconds"
    if fine == 60_000_000:
        spec = "minutes"
    times = [
        to_datetime(t).astimezone(where).replace(tzinfo=None).isoformat(" ", spec) for t in instants
    ]
    names = [columns.names[c] for c in columns.series.tolist()]
    values = [[_number(v) for v in _listed(columns, name)] for name in columns]
    seqs = [columns.seq.tolist()] if columns.seq is not None else []
    return (list(map(_text, row)) for row in zip(names, times, *seqs, *values, strict=True))


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: object) -> object:
    if isinstance(value, float):
        return None if value != value else f"{value:.12g}"
    return value


def _listed(columns: Columns, name: str) -> list[Any]:
    """Return a column as Python values, None for NULL; decimals as exact text."""
    kind, values = columns.types[name], columns.raw(name)
    if kind == "category":
        names = (*columns.categories[name], None)  # the entry past the last is what -1 finds
        return [names[c] for c in values.tolist()]
    if kind.startswith("decimal"):
        from toolkit.exports import to_decimals

        scale = int(kind[len("decimal(") : -1])
        decimals = to_decimals(values.astype(np.int64, copy=False), scale)
        return [None if d is None else f"{d:f}" for d in decimals]
    if kind == "time":
        return [None if t == NULL_INT else _iso(t) for t in values.tolist()]
    found = (values == 1).tolist() if kind == "bool" else values.tolist()
    mask = is_null(kind, values)
    if kind == "float" or not mask.any():
        return list(found)
    return [None if m else v for v, m in zip(found, mask.tolist(), strict=True)]


def plan_mapping(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON-ready values: what ``--json`` calls plan."""
    return {
        "strategy": plan.strategy,
        "reason": plan.reason,
        "start": _iso(plan.span.start),
        "end": _iso(plan.span.end),
        "step": plan.step,
        "tz": plan.grid.tz if plan.grid is not None else None,
        "rollup": str(plan.rollup.grid.step) if plan.rollup is not None else None,
        "rejected": dict(plan.rejected),
        "price_ms": round(plan.price_ms, 3),
        "alternatives": dict(plan.alternatives),
        "sources": dict(plan.sources),
        "rows_touched": plan.rows,
        "node": plan.node,
        "elapsed_ms": round(plan.elapsed_ms, 3),
    }


def _iso(us: int) -> str:
    return to_datetime(us).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _iso_texts(columns: Columns) -> list[str]:
    return [f"{t}Z" for t in np.datetime_as_string(columns.ts, unit="us").tolist()]


def echo_json_answer(columns: Columns) -> None:
    """Print ``{"types": {…}, "rows": [{"series": …, "ts": …, column: …}], "plan": {…}}``."""
    out = sys.stdout
    out.write('{"types": ' + json.dumps(dict(columns.types)) + ',\n "rows": [')
    comma = ""
    for start in range(0, len(columns), _BLOCK):
        piece = columns.select(slice(start, start + _BLOCK))
        names = [piece.names[c] for c in piece.series.tolist()]
        seqs = {} if piece.seq is None else {"seq": piece.seq.tolist()}
        keyed = {"series": names, "ts": _iso_texts(piece), **seqs}
        values = {**keyed, **{name: _listed(piece, name) for name in piece}}
        rows = zip(*values.values(), strict=True)
        for row in rows:
            text = json.dumps(
                plain(dict(zip(values, row, strict=True))), ensure_ascii=False, allow_nan=False
            )
            out.write(f"{comma}\n  {text}")
            comma = ","
    plan = plan_mapping(columns.plan) if isinstance(columns.plan, Plan) else None
    out.write('],\n "plan": ' + json.dumps(plain(plan), ensure_ascii=False) + "}\n")


def write_csv(columns: Columns, file: IO[bytes]) -> None:
    """Write a header and the rows; times are ISO 8601 in UTC, NULL is empty."""
    for start in range(0, max(len(columns), 1), _BLOCK * 5):
        piece = columns.select(slice(start, start + _BLOCK * 5))
        frame: pd.DataFrame = piece.to_pandas()
        frame["ts"] = _iso_texts(piece)
        file.write(frame.to_csv(index=False, header=start == 0).encode())


def write_parquet(columns: Columns, file: IO[bytes]) -> None:
    """Write an Arrow table, compressed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("pyarrow", "frames", "--parquet") from None
    parquet.write_table(columns.to_arrow(), file, compression="zstd")


def save(columns: Columns, target: str, write: Writer) -> None:
    """Write an answer to a file, whole or not at all, or with ``-`` to standard output."""
    if target == "-":
        if write is not write_csv and sys.stdout.isatty():
            raise QueryError("this format is not for a terminal: name a file, or pipe it on")
        with _binary_stdout() as out:
            write(columns, out)
        return
    with whole_file(Path(target)) as file:
        write(columns, file)
    note(f"{counted(len(columns), 'rows')} written to {target}")


@contextmanager
def _binary_stdout() -> Iterator[IO[bytes]]:
    raw = sys.stdout.buffer
    if not isinstance(raw, io.RawIOBase):
        yield raw
        return
    # PYTHONUNBUFFERED: a raw write may take only a part, and say so to nobody
    buffered = io.BufferedWriter(raw)
    try:
        yield buffered
        buffered.flush()
    finally:
        with suppress(BrokenPipeError):  # it flushes once more
            buffered.detach()


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes ``path``'s place when all of it is written."""
    if path.exists() and not path.is_file():
        with path.open("wb") as device:  # a pipe, or /dev/null
            yield device
        return
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            yield file
        os.replace(part, path)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def answer(columns: Columns, tz: str, outputs: Mapping[str, str | None], *, as_json: bool) -> None:
    """Print or write an answer in the one form that was asked for; a table if none was."""
    from toolkit.cli.chart import write_png

    writers: dict[str, Writer] = {"csv": write_csv, "parquet": write_parquet, "png": write_png}
    if as_json:
        echo_json_answer(columns)
        return
    for form, target in outputs.items():
        if target is not None:
            save(columns, target, writers[form])
            return
    echo_answer(columns, tz)
