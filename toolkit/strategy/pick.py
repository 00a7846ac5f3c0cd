"""Picking rows for a picture: at most N of them, keeping the shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pick_points(ts: npt.NDArray[np.int64], values: Array, n: int) -> npt.NDArray[np.intp]:
    """Return the rows, ascending, that MinMaxLTTB picks; rows without a value are passed over.

    MinMaxLTTB (arXiv 2305.00332): extremes of 4·n bins, then largest triangles among those.
    """
    rows = np.flatnonzero(~np.isnan(values))
    if len(rows) <= n:
        return rows
    return rows[_lttb(ts[rows], values[rows], n)]


def pick_bars(ts: npt.NDArray[np.int64], lows: Array, highs: Array, n: int) -> npt.NDArray[np.intp]:
    """Return the bars, ascending, whose low or high MinMaxLTTB picks."""
    rows = np.flatnonzero(~(np.isnan(lows) | np.isnan(highs)))
    if len(rows) <= n:
        return rows
    times = np.repeat(ts[rows], 2)
    times[1::2] += 1
    both = np.empty(2 * len(rows))
    both[0::2], both[1::2] = lows[rows], highs[rows]
    return rows[np.unique(_lttb(times, both, n) // 2)]


def _lttb(ts: npt.NDArray[np.int64], values: Array, n: int) -> npt.NDArray[np.intp]:
    from tsdownsample import MinMaxLTTBDownsampler

    finite = np.nan_to_num(values, posinf=np.finfo(float).max, neginf=-np.finfo(float).max)
    downsampler = MinMaxLTTBDownsampler()  # type: ignore[no-untyped-call]  # it has no types
    picked = downsampler.downsample(
        np.ascontiguousarray(ts), np.ascontiguousarray(finite, dtype=np.float64), n_out=n
    )
    return np.unique(picked.astype(np.intp))
