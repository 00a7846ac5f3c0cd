"""What is in a batch, in a form to compare."""

from __future__ import annotations

from toolkit.ingest.frames import Batch


def as_rows(batch: Batch) -> list[tuple[object, ...]]:
    """Its points: series, instant, seq and the values, with categories as their texts."""
    texts = {
        name: [None if c < 0 else batch.categories[name][c] for c in batch.values[name]]
        for name in batch.categories
    }
    columns = [texts.get(name, values.tolist()) for name, values in batch.values.items()]
    seq = [None] * len(batch) if batch.seq is None else batch.seq.tolist()
    names = [batch.names[c] for c in batch.series]
    return list(zip(names, batch.ts.tolist(), seq, *columns, strict=True))
