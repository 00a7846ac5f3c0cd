"""Encodes a batch as PostgreSQL's binary COPY stream, whole columns at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.columns import InBand, is_null
from toolkit.ingest.frames import Batch
from toolkit.timegrid import PG_EPOCH

# https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format": signature, flags and
# length of the header extension; the trailer is a field count of -1
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_PIECE_BYTES = 16 << 20
_WIRE = {"float": ">f8", "int": ">i8", "decimal": ">i8", "bool": "i1"}


@dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    """A category's names as fields: length and bytes, padded, and which bytes count."""

    fields: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, names: Sequence[str]) -> _Texts:
        encoded = [name.encode() for name in names]
        width = 4 + max(map(len, encoded), default=0)
        fields = np.zeros((len(names) + 1, width), dtype=np.uint8)
        counts = np.zeros(fields.shape, dtype=np.bool_)
        for row, text in enumerate(encoded):
            field = len(text).to_bytes(4, "big") + text
            fields[row, : len(field)] = np.frombuffer(field, dtype=np.uint8)
            counts[row, : len(field)] = True
        fields[-1, :4] = 255  # code -1, NULL: the length -1
        counts[-1, :4] = True
        return cls(fields, counts)


def encode(
    batch: Batch,
    series_ids: npt.NDArray[np.int32],
    columns: Sequence[str],
    *,
    with_seq: bool,
    rows_per_piece: int = 32_768,
) -> Iterator[bytes]:
    """Yield the stream for ``COPY … (series_id, ts[, seq], *columns) … (FORMAT binary)``.

    ``series_ids`` maps the batch's series codes to ids (int4); ts is a timestamptz, seq and
    decimals are int8, categories text. Rows have one fixed layout; where a piece has NULLs or
    text, the bytes that do not count are dropped from it afterwards.
    """
    types = {c.name: c.type for c in batch.dataset.columns}
    texts = {n: _Texts.of(batch.categories[n]) for n in columns if types[n] == "category"}
    layout = _layout(types, texts, columns, with_seq)
    rows_per_piece = max(1, min(rows_per_piece, _PIECE_BYTES // layout.itemsize))
    rows = np.zeros(min(rows_per_piece, len(batch)), dtype=layout)
    rows["fields"] = len(columns) + 2 + with_seq
    rows["series_id_length"], rows["ts_length"] = 4, 8
    if with_seq:
        rows["seq_length"] = 8
    yield HEADER
    for start in range(0, len(batch), rows_per_piece):
        part = slice(start, min(start + rows_per_piece, len(batch)))
        piece = rows[: part.stop - part.start]
        piece["series_id"] = series_ids[batch.series[part]]
        piece["ts"] = batch.ts[part] - PG_EPOCH
        if with_seq:
            assert batch.seq is not None, "a batch is numbered by arrange()"
            piece["seq"] = batch.seq[part]
        yield _piece(piece, types, texts, {n: batch.values[n][part] for n in columns})
    yield TRAILER


def _layout(
    types: dict[str, str], texts: dict[str, _Texts], columns: Sequence[str], with_seq: bool
) -> np.dtype[np.void]:
    parts: list[tuple[str, str]] = [
        ("fields", ">i2"),
        ("series_id_length", ">i4"),
        ("series_id", ">i4"),
        ("ts_length", ">i4"),
        ("ts", ">i8"),
    ]
    if with_seq:
        parts += [("seq_length", ">i4"), ("seq", ">i8")]
    for name in columns:
        if name in texts:
            parts.append((f"={name}", f"V{texts[name].fields.shape[1]}"))
        else:
            parts += [(f"#{name}", ">i4"), (f"={name}", _WIRE[types[name].partition("(")[0]])]
    return np.dtype(parts)


def _piece(
    piece: npt.NDArray[np.void],
    types: dict[str, str],
    texts: dict[str, _Texts],
    values: dict[str, InBand],
) -> bytes:
    layout = piece.dtype
    assert layout.fields is not None
    counts: npt.NDArray[np.bool_] | None = None
    whole = piece.view(np.uint8).reshape(len(piece), layout.itemsize)
    for name, column in values.items():
        offset = layout.fields[f"={name}"][1]
        end = offset + layout.fields[f"={name}"][0].itemsize
        if counts is None and name in texts:
            counts = np.ones(whole.shape, dtype=np.bool_)
        if name in texts:
            assert counts is not None
            codes = column.astype(np.intp)
            whole[:, offset:end] = texts[name].fields[codes]
            counts[:, offset:end] = texts[name].counts[codes]
            continue
        piece[f"#{name}"] = end - offset
        piece[f"={name}"] = column
        null = is_null(types[name], column)
        if null.any():
            if counts is None:
                counts = np.ones(whole.shape, dtype=np.bool_)
            missing = np.flatnonzero(null)
            piece[f"#{name}"][missing] = -1
            counts[missing, offset:end] = False
    return piece.tobytes() if counts is None else whole[counts].tobytes()
