"""What lies in blocks and what in rows: states that random tests put their points into."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from fix_cache import memory
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from oracle import EPOCH, Points

from toolkit import cutting
from toolkit.dataset import METRICS, Dataset
from toolkit.timegrid import EARLIEST, LATEST

_DAY = 86_400_000_000
_REACH = 62 * _DAY  # the partitions that hold it are closed
ACTS = ("nothing", "compress", "compress some", "recompress", "decompress", "decompress some")
acts = st.sampled_from(ACTS)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of so few points that a dozen make several."""
    monkeypatch.setattr(cutting, "TARGET", 5)


def around(instants: list[int]) -> tuple[datetime, datetime]:
    """Return a range that holds the partitions of instants whole, as far as times may go."""
    low = max(min(instants) - _REACH, EARLIEST)
    high = min(max(instants) + _REACH, LATEST)
    return EPOCH + timedelta(microseconds=low), EPOCH + timedelta(microseconds=high)


def pack(store: Any, dataset: Dataset, points: Points, act: str, part: int) -> int:
    """Move points between rows and blocks as ``act`` says; return how many moved.

    ``part`` says which are some: every other series, or what lies before one of the points.
    """
    if act == "nothing" or not points:
        return 0
    names = sorted({key[0] for key in points})
    instants = sorted({key[1] for key in points})
    start, end = around(instants)
    if act.endswith("some"):
        names = names[part % 2 :: 2] or names
        if part % 3:
            end = EPOCH + timedelta(microseconds=instants[part % len(instants)] + part % 2)
    if act.startswith("decompress"):
        report = store.decompress(dataset.name, names, start, end)
    elif act == "recompress":
        report = store.recompress(dataset.name, names, start=start, end=end)
    else:
        report = store.compress(dataset.name, names, start=start, end=end)
    assert not report.busy
    moved: int = report.points
    return moved


class Moving(RuleBasedStateMachine):
    """A history of metrics in which points move, and nobody who remembers them hears of it."""

    stores: tuple[Any, Any]
    cutter: Any
    names: dict[str, str]
    writers: list[Any]
    there: Callable[[str, int, int], list[tuple[str, int]]]
    look: Callable[[Any], None]
    is_cold = False

    @precondition(lambda self: not self.writers)  # of what they change the move would wait
    @rule(by=st.integers(0, 1), act=st.sampled_from(ACTS[1:]), part=st.integers(0, 1_000))
    def nothing_that_moves_is_dropped(self, by: int, act: str, part: int) -> None:
        there = self.there("a", 0, 2**60) + self.there("b", 0, 2**60)
        points: Points = {(self.names[letter], ts, 0): {} for letter, ts in there}
        before = self.held()
        pack(self.stores[by], METRICS, points, act, part)
        self.is_cold = True
        assert self.held() == before

    def held(self) -> list[Any]:
        """Return what either store holds when it has heard of all changes."""
        for store in self.stores:
            self.look(store)
        return [memory(store).held() for store in self.stores]

    def thaw(self) -> None:
        """Make rows of all points: who never heard of blocks changes nothing else."""
        if self.is_cold:
            self.cutter.decompress("metrics", [*self.names.values()])
            self.is_cold = False
