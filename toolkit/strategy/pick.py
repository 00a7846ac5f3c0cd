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


def pick_bars(
    ts: npt.NDArray[np.int64], lows: Array, highs: Array, n: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return the bars, ascending, whose low or high MinMaxLTTB picks, and which of them by high.

    Of a bar picked by both counts the one farther from the middle of the picks before and after,
    and before all the least low and the greatest high.
    """
    rows = np.flatnonzero(~(np.isnan(lows) | np.isnan(highs)))
    times = np.repeat(ts[rows], 2)
    times[1::2] += 1
    both = np.empty(2 * len(rows))
    both[0::2], both[1::2] = lows[rows], highs[rows]
    both = _finite(both)
    picked = _lttb(times, both, n) if len(rows) > n else np.arange(len(both))
    picked = _one_a_bar(picked, both[picked])
    return rows[picked // 2], picked % 2 == 1


def _one_a_bar(picked: npt.NDArray[np.intp], values: Array) -> npt.NDArray[np.intp]:
    """Return the picks without the lesser one of each two in the same bar.

    >>> _one_a_bar(np.array([0, 2, 3, 4]), np.array([1.0, 0.0, 3.0, 1.0])).tolist()
    [0, 3, 4]
    """
    lows = np.flatnonzero(picked[1:] // 2 == picked[:-1] // 2)
    if not len(lows):
        return picked
    before, after = np.maximum(lows - 1, 0), np.minimum(lows + 2, len(picked) - 1)
    middle = values[before] / 2 + values[after] / 2
    low, high = values[lows], values[lows + 1]
    # halves: the distance of the greatest floats is no float
    is_high = np.abs(high / 2 - middle / 2) >= np.abs(low / 2 - middle / 2)
    is_high = (is_high & (low > values.min())) | (high == values.max())
    return np.delete(picked, np.where(is_high, lows, lows + 1))


def _lttb(ts: npt.NDArray[np.int64], values: Array, n: int) -> npt.NDArray[np.intp]:
    from tsdownsample import MinMaxLTTBDownsampler

    downsampler = MinMaxLTTBDownsampler()  # type: ignore[no-untyped-call]  # it has no types
    picked = downsampler.downsample(
        np.ascontiguousarray(ts), np.ascontiguousarray(_finite(values)), n_out=n
    )
    return np.unique(picked.astype(np.intp))


def _finite(values: Array) -> Array:
    most = np.finfo(float).max
    return np.nan_to_num(values.astype(np.float64), posinf=most, neginf=-most)
