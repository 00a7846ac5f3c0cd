"""Which locks a move takes: whoever may meet the same block takes one of the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.moves import locks_of
from toolkit.timegrid import DAY, EARLIEST, LATEST, Grid, Span, Step

instants = st.integers(EARLIEST, LATEST - 2)
widths = st.sampled_from([1, 3_600_000_000, DAY, 40 * DAY, 90 * DAY, 5_000 * DAY])


@pytest.mark.parametrize("partition", ["1d", "10d", "1w", "1M", "1y"])
@given(start=instants, width=widths, part=st.floats(0, 1), series=st.integers(1, 2**31 - 1))
def test_a_span_has_the_locks_of_every_partition_it_touches(
    partition: str, start: int, width: int, part: float, series: int
) -> None:
    grid, end = Grid(Step.parse(partition)), min(start + width, LATEST - 1)
    inside = min(start + int(part * (end - start)), end - 1)
    begin = grid.floor_one(inside)
    whole = Span(begin, int(grid.edges(Span(begin, begin + 1))[1]))  # a block reaches so far
    assert locks_of(grid, series, whole) <= locks_of(grid, series, Span(start, end))
    assert len(locks_of(grid, series, whole)) == 1
