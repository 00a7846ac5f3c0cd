"""Instants, spans and the buckets of a step: the one definition of time, in whole microseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt

from toolkit.errors import QueryError, shorten

Instants = npt.NDArray[np.int64]
"""Microseconds since 1970-01-01T00:00Z."""

SECOND = 1_000_000
DAY = 86_400 * SECOND
EARLIEST = -2_208_988_800 * SECOND  # 1900-01-01
LATEST = 4_102_444_800 * SECOND  # 2100-01-01
PG_EPOCH = 946_684_800 * SECOND  # PostgreSQL counts its timestamps from 2000-01-01

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MONDAY = 4 * DAY  # 1970-01-05
_WIDTHS = {"s": SECOND, "m": 60 * SECOND, "h": 3_600 * SECOND, "d": DAY, "w": 7 * DAY}
_MONTHS = {"M": 1, "y": 12}
_STEP = re.compile(r"([1-9][0-9]{0,6})([smhdwMy])")
_MAX_EDGES = 200_000


def to_us(value: object, what: str = "time") -> int:
    """Return the instant ``value`` names, in microseconds since 1970 UTC, rounded down.

    Takes an aware ``datetime`` (``pandas.Timestamp`` is one), ``numpy.datetime64`` (UTC by
    definition) or ISO 8601 text with an offset. Anything without a zone is refused: whose
    midnight it means is the caller's to say.

    >>> to_us("1969-12-31T23:59:59.999999Z")
    -1
    >>> to_us(np.datetime64("1970-01-01T00:00:01"))
    1000000
    """
    if isinstance(value, str):
        value = _parse_iso(value, what)
    if type(value) is datetime and value.tzinfo is UTC:
        return (value - _EPOCH) // _MICROSECOND
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            raise QueryError(f"{what}: NaT is not a point in time")
        return (
            int(np.floor_divide(value.astype("M8[ns]").astype(np.int64), 1000))
            if (np.datetime_data(value.dtype)[0] in ("ns", "ps", "fs", "as"))
            else int(value.astype("M8[us]").astype(np.int64))
        )
    if isinstance(value, datetime):
        if value != value:  # pandas.NaT
            raise QueryError(f"{what}: NaT is not a point in time")
        if value.utcoffset() is None:
            raise QueryError(
                f"{what}: {value.isoformat()} has no time zone; give an aware datetime, "
                "for instance datetime(..., tzinfo=timezone.utc)"
            )
        return (value - _EPOCH) // _MICROSECOND
    if isinstance(value, date):
        raise QueryError(f"{what}: {value.isoformat()} is a date; give a datetime with a time zone")
    raise QueryError(
        f"{what}: expected a datetime, numpy.datetime64, pandas.Timestamp or ISO 8601 text, "
        f"got {type(value).__name__}"
    )


def _parse_iso(text: str, what: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)  # floors what is finer than microseconds
    except ValueError:
        parsed = _parse_date(text, what)
    if parsed.tzinfo is None:
        raise QueryError(
            f"{what}: {shorten(text)} has no time zone; write {text.strip()}Z for UTC "
            "or add an offset like +01:00"
        )
    return parsed


def _parse_date(text: str, what: str) -> datetime:
    """Read what fromisoformat does not: a bare date with an offset, blanks around."""
    stripped = re.sub(r"^(\d{4}-\d{2}-\d{2})(Z|[+-]\d{2}:?\d{2})$", r"\1T00:00\2", text.strip())
    try:
        return datetime.fromisoformat(stripped)
    except ValueError:
        raise QueryError(
            f"{what}: {shorten(text)} is not ISO 8601 time; write for instance 2024-01-31T09:30:00Z"
        ) from None


def to_datetime(us: int) -> datetime:
    """Return the aware UTC datetime of an instant.

    >>> to_datetime(-1).isoformat()
    '1969-12-31T23:59:59.999999+00:00'
    """
    return _EPOCH + timedelta(microseconds=us)


def iso(us: int) -> str:
    """Return an instant as short ISO 8601 text in UTC.

    >>> iso(0), iso(1_500_000)
    ('1970-01-01T00:00Z', '1970-01-01T00:00:01.500000Z')
    """
    moment = to_datetime(us)
    spec = "auto" if moment.second or moment.microsecond else "minutes"
    return moment.isoformat(timespec=spec).replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of time ``[start, end)`` in microseconds since 1970 UTC."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise QueryError(f"end {iso(self.end)} is before start {iso(self.start)}")

    @classmethod
    def between(cls, start: object, end: object) -> Span:
        """Build a span from anything :func:`to_us` takes, inside 1900 to 2100."""
        low, high = to_us(start, "start"), to_us(end, "end")
        for what, given, us in (("start", start, low), ("end", end, high)):
            if not EARLIEST <= us <= LATEST:
                raise QueryError(f"{what}: {given} is outside 1900 to 2100")
        return cls(low, high)

    @property
    def width(self) -> int:
        return self.end - self.start

    @property
    def is_empty(self) -> bool:
        return self.end == self.start

    def __contains__(self, us: int) -> bool:
        return self.start <= us < self.end

    def clip(self, other: Span) -> Span:
        """Return the part inside ``other``; empty at the nearer end if there is none."""
        start = min(max(self.start, other.start), other.end)
        return Span(start, max(start, min(self.end, other.end)))

    def cut(self, edges: Instants) -> list[Span]:
        """Return the span cut at those of the sorted ``edges`` that lie inside it."""
        inner = [int(e) for e in edges if self.start < e < self.end]
        return [Span(a, b) for a, b in pairwise([self.start, *inner, self.end])]

    def __str__(self) -> str:
        return f"[{iso(self.start)}, {iso(self.end)})"


@dataclass(frozen=True, slots=True)
class Step:
    """A bucket's length: ``n`` seconds, minutes, hours, days, weeks, months (M) or years."""

    n: int
    unit: str

    @classmethod
    def parse(cls, text: str | Step) -> Step:
        """Read ``"5m"``, ``"1h"``, ``"1d"``, ``"1M"``.

        >>> Step.parse("15m")
        Step(n=15, unit='m')
        """
        if isinstance(text, Step):
            return text
        match = _STEP.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise QueryError(
                f"unknown step {shorten(str(text))}: write a number and a unit, s m h d w "
                "M (month) or y, for instance '5m', '1h', '1M'"
            )
        step = cls(int(match[1]), match[2])
        if step.approximate_us > 100 * 366 * DAY:
            raise QueryError(f"step {text!r} is longer than a hundred years")
        return step

    def __str__(self) -> str:
        return f"{self.n}{self.unit}"

    @property
    def months(self) -> int:
        """Months a bucket spans; 0 for steps made of seconds, days or weeks."""
        return self.n * _MONTHS.get(self.unit, 0)

    @property
    def approximate_us(self) -> int:
        """Length in microseconds; for months and years, of the mean Gregorian month."""
        if self.months:
            return self.months * 2_629_746 * SECOND
        return self.n * _WIDTHS[self.unit]

    @property
    def is_calendar(self) -> bool:
        """Whether a bucket's bounds depend on the zone: days and longer."""
        return self.unit in "dwMy"


def zone(name: str) -> ZoneInfo:
    """Return the named time zone, or say that there is none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise QueryError(
            f"unknown time zone {shorten(str(name))}; use a name like 'UTC' or 'Europe/Berlin'"
        ) from None


@dataclass(frozen=True, slots=True)
class Grid:
    """The buckets of a step in a zone; they tile time: start <= ts < next start.

    Steps of seconds, minutes and hours are aligned to 1970-01-01T00:00Z whatever the zone.
    ``n`` days count from 1970-01-01, ``n`` weeks from Monday 1970-01-05 and months and years
    from 1970-01, each at the zone's midnight. Where a clock change removes midnight the bucket
    begins when it would have been by the clock before the change; where it repeats midnight, at
    the second one (PostgreSQL's rule for ``timestamp AT TIME ZONE zone``).
    """

    step: Step
    tz: str = "UTC"

    def __post_init__(self) -> None:
        zone(self.tz)

    @property
    def width(self) -> int | None:
        """Microseconds between bucket starts when they are all equal, else None."""
        if self.step.months or (self.step.is_calendar and self.tz != "UTC"):
            return None
        return self.step.approximate_us

    @property
    def origin(self) -> int:
        """A bucket start that all equal-width buckets are counted from."""
        return _MONDAY if self.step.unit == "w" else 0

    def floor(self, ts: Instants) -> Instants:
        """Return the start of each instant's bucket."""
        if self.width is not None:
            return (ts - self.origin) // self.width * self.width + self.origin
        if not len(ts):
            return ts.copy()
        edges = self.edges(Span(int(ts.min()), int(ts.max()) + 1))
        result: Instants = edges[np.searchsorted(edges, ts, side="right") - 1]
        return result

    def floor_one(self, us: int) -> int:
        """Return the start of the bucket that holds ``us``."""
        if self.width is not None:
            return (us - self.origin) // self.width * self.width + self.origin
        return int(self.edges(Span(us, us + 1))[0])

    def ceil_one(self, us: int) -> int:
        """Return ``us`` if a bucket starts there, else the next bucket's start."""
        start = self.floor_one(us)
        return us if start == us else int(self.edges(Span(start, us + 1))[-1])

    def edges(self, span: Span) -> Instants:
        """Return the starts of all buckets that touch ``span``, and the end of the last one."""
        if self.width is not None:
            first = self.floor_one(span.start)
            last = self.floor_one(max(span.end - 1, span.start)) + self.width
            self._refuse_too_many((last - first) // self.width)
            return np.arange(first, last + 1, self.width, dtype=np.int64)
        self._refuse_too_many(span.width // self.step.approximate_us)
        low, high = self._index(span.start) - 2, self._index(max(span.end - 1, span.start)) + 3
        starts = np.unique(np.array([self._start(k) for k in range(low, high)], dtype=np.int64))
        first = int(np.searchsorted(starts, span.start, side="right")) - 1
        last = int(np.searchsorted(starts, max(span.end, span.start + 1), side="left"))
        return starts[first : last + 1]

    def count(self, span: Span) -> int:
        """Return how many buckets touch ``span``; within one for calendar steps."""
        if span.is_empty:
            return 0
        if self.width is not None:
            return (self.floor_one(span.end - 1) - self.floor_one(span.start)) // self.width + 1
        return span.width // self.step.approximate_us + 1

    def is_on(self, finer: Grid, span: Span) -> bool:
        """Whether every bucket of this grid over ``span`` is a whole number of ``finer``'s."""
        if finer.width is None:
            return False
        if self.width is not None:
            return self.width % finer.width == 0 and (self.origin - finer.origin) % finer.width == 0
        return bool(np.all((self.edges(span) - finer.origin) % finer.width == 0))

    def _index(self, us: int) -> int:
        local = (to_datetime(us).astimezone(zone(self.tz))).date()
        if self.step.months:
            return ((local.year - 1970) * 12 + local.month - 1) // self.step.months
        days = local.toordinal() - 719_163
        return (days - 4) // (7 * self.step.n) if self.step.unit == "w" else days // self.step.n

    def _start(self, k: int) -> int:
        return _bucket_start(self.step, self.tz, k)

    def _refuse_too_many(self, count: int) -> None:
        if count > _MAX_EDGES and (self.width is None or count > 100 * _MAX_EDGES):
            raise QueryError(
                f"step {self.step} cuts the range into {count:,} buckets; ask for less"
            )


@lru_cache(maxsize=65_536)
def _bucket_start(step: Step, tz: str, k: int) -> int:
    if step.months:
        year, month = divmod(k * step.months, 12)
        midnight = datetime(1970 + year, month + 1, 1)
    else:
        days = k * step.n * 7 + 4 if step.unit == "w" else k * step.n
        midnight = datetime(1970, 1, 1) + timedelta(days=days)
    if tz == "UTC":
        return (midnight.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
    there = zone(tz)
    # before a gap and after an overlap: the smaller of the two offsets is PostgreSQL's choice
    offsets = [
        midnight.replace(tzinfo=there, fold=fold).utcoffset() or timedelta() for fold in (0, 1)
    ]
    return (midnight.replace(tzinfo=timezone(min(offsets))) - _EPOCH) // _MICROSECOND
