"""The checker of histories finds what is planted, and nothing in a history that is right."""

from __future__ import annotations

import pytest
from fix_consistency import BOUND_S, Seen, Written, violations

WRITES = [
    Written(0, 0, 1, False, 1.0, 1.1),
    Written(0, 0, 2, False, 2.0, 2.1),
    Written(0, 0, 3, True, 10.0, 10.1),
    Written(0, 0, 4, False, 20.0, 20.1),
    Written(1, 1, 1, False, 5.0, 5.1),
]


def wrong(read: Seen) -> list[str]:
    return list(violations(WRITES, [read], max_age=1.0))


def seen(promise: str, began: float, *numbers: int | None, process: int = 1) -> Seen:
    there = {key: number for key, number in enumerate(numbers) if number is not None}
    token = (0, 2.2) if promise == "after" else None
    return Seen(process, promise, began, began + 0.1, there, token)


@pytest.mark.parametrize(
    "read",
    [
        seen("strong", 2.5, 2),
        seen("strong", 2.05, 1),  # it is being written
        seen("strong", 2.05, 2),
        seen("session", 3.0, 1),
        seen("session", 3.2, 2),
        seen("session", 2.2, 2, process=0),
        seen("bounded", 2.1 + BOUND_S - 0.1, 1),
        seen("after", 2.5, 2),
        seen("strong", 11.0, None, 1),
        seen("strong", 9.95, None, 1),  # it is being deleted
        seen("strong", 21.0, 4, 1),
        seen("session", 0.5),
    ],
)
def test_what_is_right_is_not_accused(read: Seen) -> None:
    assert wrong(read) == []


@pytest.mark.parametrize(
    "read",
    [
        seen("strong", 2.5, 1),
        seen("strong", 2.5),  # lost, or not there yet
        seen("session", 3.2, 1),
        seen("session", 2.2, 1, process=0),  # its own
        seen("bounded", 2.2 + BOUND_S, 1),
        seen("after", 2.5, 1),
        seen("strong", 11.0, 2, 1),  # deleted
        seen("strong", 21.0, None, 1),  # written again
        seen("strong", 2.5, 4),  # from the future
        seen("session", 10.5, 3, 1),  # never there
    ],
)
def test_what_is_planted_is_found(read: Seen) -> None:
    assert len(wrong(read)) == 1


def test_a_history_with_a_hole_is_refused() -> None:
    with pytest.raises(AssertionError, match="a number is missing"):
        list(violations([WRITES[0], WRITES[2]], [], max_age=1.0))
