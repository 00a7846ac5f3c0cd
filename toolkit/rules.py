"""Rules for what is remembered: of which dataset and step, where, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from toolkit.errors import ConfigError, ToolkitError, UnknownName, shorten
from toolkit.timegrid import SECOND, Step

POINTS = "points"
TIERS = ("memory", "redis")
_NEAR = (60, 300, 900, 3_600, 14_400, 86_400)  # seconds: 1m, 5m, 15m, 1h, 4h, 1d
_LONGEST_S = 366 * 86_400


@dataclass(frozen=True, slots=True)
class CacheRule:
    """What is remembered of a dataset's spans of one step, and for how many seconds.

    ``dataset`` is a pattern; ``step`` the distance of points or buckets, ``"points"`` (of any
    distance), or ``"*"``. ``tiers`` are where spans are held: memory, redis, both or none.
    ``open`` is the life of a span that is near now, ``closed`` that of one that is past. Without
    ``open`` a span near now lives as long as its step, of 60 s to a day.
    """

    dataset: str = "*"
    step: str = "*"
    tiers: tuple[str, ...] = TIERS
    open: float | None = None
    closed: float = 86_400.0

    def fits(self, dataset: str, level: str, step_us: int) -> bool:
        """Return whether it is for spans of ``level`` with rows so many µs apart."""
        if not fnmatchcase(dataset, self.dataset):
            return False
        if self.step in ("*", POINTS):
            return self.step == "*" or level == POINTS
        return Step.parse(self.step).approximate_us == step_us

    def life(self, step_us: int, *, is_closed: bool) -> float:
        """Return how many seconds a span lives.

        >>> CacheRule().life(60_000_000, is_closed=False)
        60.0
        >>> CacheRule(open=5).life(60_000_000, is_closed=False)
        5.0
        """
        if is_closed:
            return float(self.closed)
        if self.open is not None:
            return float(self.open)
        return float(next((s for s in _NEAR if step_us <= s * SECOND), _NEAR[-1]))

    def __str__(self) -> str:
        where = " and ".join(self.tiers) or "nowhere"
        return f"{self.dataset} {self.step}: {where}"


EVERYTHING = CacheRule()


def rules_of(value: object, origin: str, key: str) -> tuple[CacheRule, ...]:
    """Return the rules that a settings file lists; the first that fits counts."""
    if isinstance(value, tuple) and all(isinstance(rule, CacheRule) for rule in value):
        return value
    if not isinstance(value, list):
        problem = f'expected tables like {{dataset = "candles", step = "1m"}}, got {value!r}'
        raise ConfigError(origin, key, problem)
    return tuple(_rule(said, origin, f"{key}[{n}]") for n, said in enumerate(value))


def _rule(said: object, origin: str, key: str) -> CacheRule:
    if not isinstance(said, Mapping):
        raise ConfigError(origin, key, f"expected a table, got {shorten(str(said))}")
    known = [f.name for f in fields(CacheRule)]
    for name in said:
        if name not in known:
            raise ConfigError(origin, f"{key}.{name}", str(UnknownName("setting", name, known)))
    values: dict[str, Any] = dict(said)
    for name in ("dataset", "step"):
        if not isinstance(values.get(name, "*"), str):
            raise ConfigError(origin, f"{key}.{name}", f"expected str, got {values[name]!r}")
    if values.get("step", "*") not in ("*", POINTS):
        try:
            Step.parse(values["step"])
        except ToolkitError as error:
            raise ConfigError(origin, f"{key}.step", str(error)) from None
    for name in ("open", "closed"):
        seconds = values.get(name, 0.0)
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 <= seconds <= _LONGEST_S:
            problem = f"{seconds!r} is not a number of seconds up to {_LONGEST_S:,} (a year)"
            raise ConfigError(origin, f"{key}.{name}", problem)
    if "tiers" in values:
        tiers = values["tiers"]
        if not isinstance(tiers, list) or not all(t in TIERS for t in tiers):
            problem = f"{tiers!r} is not a list of {', '.join(TIERS)}"
            raise ConfigError(origin, f"{key}.tiers", problem)
        values["tiers"] = tuple(t for t in TIERS if t in tiers)
    return CacheRule(**values)
