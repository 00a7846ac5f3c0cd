"""What starts maintenance by the clock, as text: a line for cron, units for systemd."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

SERVICE, TIMER = "toolkit-maintain.service", "toolkit-maintain.timer"
_DAY = 24 * 60
# minutes after which the clock shows the same again, so that each day is like the other
_RHYTHMS = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, _DAY)
_GRACE_S = 60  # after the run's own time is over it ends by itself


@dataclass(frozen=True, slots=True)
class Timetable:
    """How often ``command`` runs, in minutes, and for how long at most, in seconds.

    ``offset`` (from 0 to 1) moves it within that time: many machines do not start at once.
    ``user`` is who runs it under systemd.
    """

    command: Sequence[str]
    minutes: int
    max_runtime_s: int
    offset: float = 0.0
    user: str = ""

    def cron(self) -> str:
        """Return a crontab's line: what it prints goes nowhere, what goes wrong is mailed.

        >>> print(Timetable(["toolkit", "maintain"], 15, 60, 0.5).cron(), end="")
        7-59/15 * * * * toolkit maintain >/dev/null
        """
        command = shlex.join(self.command).replace("%", r"\%")  # which is a line's end to cron
        at = int(self.offset * self.minutes)
        if self.minutes == 1:
            when, command = "* * * * *", f"sleep {int(self.offset * 30)}; {command}"
        elif self.minutes < 60:
            when = f"{at}-59/{self.minutes} * * * *"
        else:
            hours = self.minutes // 60
            of = "*" if hours == 1 else f"{at // 60}" if hours == 24 else f"{at // 60}-23/{hours}"
            when = f"{at % 60} {of} * * *"
        return f"{when} {command} >/dev/null\n"

    def systemd(self) -> Mapping[str, str]:
        """Return a service and its timer, which starts no second one while the first runs."""
        user = [f"User={self.user}"] if self.user else []
        service = (
            "[Unit]",
            "Description=Maintenance of the time-series toolkit's database: what is due",
            "Wants=network-online.target",
            "After=network-online.target",
            "",
            "[Service]",
            "Type=exec",
            *user,
            "# TOOLKIT_DSN=postgresql://…, for its owner's eyes only",
            "EnvironmentFile=-/etc/timeseries-toolkit/environment",
            f"ExecStart={' '.join(_quoted(word) for word in self.command)}",
            "# its own time is over before; this is for when it cannot tell",
            f"RuntimeMaxSec={self.max_runtime_s + _GRACE_S}",
            "StandardOutput=null",
            "NoNewPrivileges=yes",
            "ProtectSystem=full",
            "PrivateTmp=yes",
        )
        timer = (
            "[Unit]",
            "Description=Starts the maintenance of the time-series toolkit's database",
            "",
            "[Timer]",
            f"OnCalendar={self._calendar()}",
            "# every machine at a time of its own, and that the same each time",
            f"RandomizedDelaySec={min(self.minutes * 15, 300)}",
            "FixedRandomDelay=yes",
            "AccuracySec=1s",
            "# after a night switched off it starts once",
            "Persistent=yes",
            "",
            "[Install]",
            "WantedBy=timers.target",
        )
        return {SERVICE: "\n".join(service) + "\n", TIMER: "\n".join(timer) + "\n"}

    def _calendar(self) -> str:
        if self.minutes < 60:
            return f"*-*-* *:0/{self.minutes}:00"
        hours = self.minutes // 60
        return "*-*-* 00:00:00" if hours == 24 else f"*-*-* 0/{hours}:00:00"


def rhythm(intervals: Sequence[timedelta]) -> int:
    """Return after how many minutes to look what is due: as often as the most frequent is.

    >>> rhythm([timedelta(hours=1), timedelta(minutes=7)]), rhythm([timedelta(days=30)])
    (6, 1440)
    """
    shortest = min((i.total_seconds() / 60 for i in intervals), default=_DAY)
    return max((m for m in _RHYTHMS if m <= shortest), default=1)


def _quoted(word: str) -> str:
    """Return a word as ExecStart= reads it (systemd.service(5)).

    >>> _quoted("/opt/my tools/toolkit"), _quoted("100%"), _quoted("a$b")
    ('"/opt/my tools/toolkit"', '100%%', 'a$$b')
    """
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    is_plain = escaped and not any(c.isspace() or c in "\"'\\;" for c in escaped)
    return escaped if is_plain else f'"{escaped}"'
