"""The numbers that options take: a count, and a span of seconds."""

from __future__ import annotations

import math
from typing import Any

import click

COUNT = click.IntRange(max=2**31 - 1)
"""How many; what is too few the library says."""

_LONGEST_S = 10 * 24 * 3600


class Seconds(click.FloatRange):
    """Seconds, ``least`` to ten days; not a number is refused, which no range does by itself."""

    name = "seconds"

    def __init__(self, least: float = 0) -> None:
        super().__init__(min=least, max=_LONGEST_S)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return found
