"""Reads the times that people type."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta

from toolkit.errors import QueryError, shorten
from toolkit.timegrid import Step, zone

_RELATIVE = re.compile(r"(now|today|yesterday|tomorrow)(?:\s*([+-])\s*([0-9]+[smhdwMy]))?")
_DAY_IN_UTC = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})Z")  # as the library takes it
_DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}


def read_time(text: str, tz: str = "UTC", *, now: datetime, what: str = "time") -> datetime:
    """Return the instant a text names; without an offset it is the clock's of ``tz``.

    Takes ISO 8601, perhaps a date alone or with a Z, and ``now``, ``today``, ``yesterday`` or
    ``tomorrow`` (midnights in ``tz``), each with a distance like ``now-7d`` or ``today+9h``.
    Days and longer keep the clock's time over a clock change.

    >>> read_time("2024-01-31 09:30", "Europe/Berlin", now=datetime.now(UTC)).isoformat()
    '2024-01-31T08:30:00+00:00'
    >>> read_time("2024-01-31Z", "Europe/Berlin", now=datetime.now(UTC)).isoformat()
    '2024-01-31T00:00:00+00:00'
    """
    where = zone(tz)
    if match := _RELATIVE.fullmatch(text.strip()):
        word, sign, distance = match.groups()
        local = now.astimezone(where).replace(tzinfo=None)
        if word == "now":
            if distance is None or distance[-1] in "smh":
                return now.astimezone(UTC) + _fixed(sign, distance)
        else:
            midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
            local = midnight + timedelta(days=_DAYS[word])
        if distance is not None:
            try:
                local = _moved(local, sign, Step.parse(distance), distance)
            except (OverflowError, ValueError):
                raise QueryError(f"{what}: {text!r} is out of range") from None
        return _in_zone(local, tz, text, what, is_exact=False)
    try:
        said = text.strip()
        day = _DAY_IN_UTC.fullmatch(said)
        moment = datetime.fromisoformat(f"{day[1]}T00:00Z" if day else said)
    except ValueError:
        raise QueryError(
            f"{what}: {shorten(text)} is not a time; write 2024-01-31, '2024-01-31 09:30', "
            "2024-01-31T09:30:00Z, now-7d or today"
        ) from None
    if moment.tzinfo is not None:
        return moment.astimezone(UTC)
    return _in_zone(moment, tz, text, what, is_exact=len(text.strip()) > 10)


def _fixed(sign: str | None, distance: str | None) -> timedelta:
    if distance is None:
        return timedelta()
    length = timedelta(microseconds=Step.parse(distance).approximate_us)
    return -length if sign == "-" else length


def _moved(local: datetime, sign: str, step: Step, distance: str) -> datetime:
    if not step.months:
        return local + _fixed(sign, distance)
    count = local.year * 12 + local.month - 1 + (step.months if sign == "+" else -step.months)
    year, month = divmod(count, 12)
    day = min(local.day, monthrange(year, month + 1)[1])
    return local.replace(year=year, month=month + 1, day=day)


def _in_zone(local: datetime, tz: str, text: str, what: str, *, is_exact: bool) -> datetime:
    """Return the instant at which clocks in ``tz`` show ``local``.

    An hour that a clock change repeats or removes is refused where it was typed; a midnight
    that only a date or a distance means is where the day's bucket begins (``timegrid.Grid``).
    """
    where = zone(tz)
    try:
        early, late = (local.replace(tzinfo=where, fold=f).astimezone(UTC) for f in (0, 1))
    except OverflowError:
        raise QueryError(f"{what}: {text!r} is out of range") from None
    if early == late:
        return early
    if is_exact:
        often = "twice" if early < late else "never"
        raise QueryError(
            f"{what}: clocks in {tz} showed {text} {often}, when they were changed; "
            "give it with an offset like +01:00, or in UTC"
        )
    return max(early, late)
