"""New points among those that are there, in numpy: which of two with one key stays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from toolkit.reduce import Array, Table, stack

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Folded:
    """The points of one series afterwards, and what became of the new ones.

    ``is_known`` says of each new point whether its key was there, ``is_stored`` whether it is
    what is there now and was not before.
    """

    table: Table
    is_known: Flags
    is_stored: Flags

    @property
    def inserted(self) -> int:
        """How many keys are new."""
        return int(np.count_nonzero(~self.is_known))

    @property
    def updated(self) -> int:
        """How many points others took the place of."""
        return int(np.count_nonzero(self.is_known & self.is_stored))


def fold(old: Table, new: Table, *, replaces: bool, given: tuple[str, ...] | None) -> Folded:
    """Fold new points of a series into its old ones, each in order and without equal keys.

    Of two with one key the old one stays, or, where the new one ``replaces`` it, that one; then
    columns that were not ``given`` (None: all were) keep the old values. Points that
    are equal bit for bit are no change, and of NULLs no bit counts.
    """
    if not len(old):
        return Folded(new, np.zeros(len(new), bool), np.ones(len(new), bool))
    both = stack([old, new])
    seq = both.values.get("seq")
    # both sorts are stable: of equal keys the old one comes first
    order = np.argsort(both.ts, kind="stable") if seq is None else np.lexsort((seq, both.ts))
    is_tie = both.ts[order[1:]] == both.ts[order[:-1]]
    if seq is not None:
        is_tie &= seq[order[1:]] == seq[order[:-1]]
    at = np.flatnonzero(is_tie)
    before, after = order[at], order[at + 1]
    differs = np.zeros(len(at), bool)
    values = dict(both.values)
    for name in values if replaces and len(at) else ():
        if name == "seq":
            continue
        if given is None or name in given:
            differs |= _differs(values[name][before], values[name][after])
        else:
            values[name] = values[name].copy()
            values[name][after] = values[name][before]
    stays = np.ones(len(order), bool)
    stays[np.where(differs, at, at + 1)] = False
    is_known = np.zeros(len(new), bool)
    is_known[after - len(old)] = True
    is_stored = ~is_known
    is_stored[after[differs] - len(old)] = True
    return Folded(replace(both, values=values).take(order[stays]), is_known, is_stored)


def _differs(a: Array, b: Array) -> Flags:
    if a.dtype != np.float64:
        return np.asarray(a != b)
    return np.asarray((a.view(np.int64) != b.view(np.int64)) & ~(np.isnan(a) & np.isnan(b)))
