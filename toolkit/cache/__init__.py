"""What a store remembers of its answers: spans of one series at one level; all of it pure.

The road that fills and uses it is :mod:`toolkit.cached`; what tells it of changes is
:mod:`toolkit.follower`.
"""

from toolkit.cache.memory import Fill, Held, Key, Memory
from toolkit.cache.spans import LENGTHS, Level, level_of_points, level_of_rollup

__all__ = [
    "LENGTHS",
    "Fill",
    "Held",
    "Key",
    "Level",
    "Memory",
    "level_of_points",
    "level_of_rollup",
]
