"""What starts maintenance by the clock: read as cron and systemd read it."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from toolkit_maintenance import timetable
from toolkit_maintenance.timetable import SERVICE, TIMER, Timetable, rhythm

COMMAND = [sys.executable, "-c", "print('100% \"odd\"', $HOME)", "--config", "/srv/my data/t.toml"]
DAY = 24 * 60
# of systemd.service(5), systemd.exec(5), systemd.timer(5) and systemd.unit(5)
KNOWN = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        *("Type", "User", "EnvironmentFile", "ExecStart", "RuntimeMaxSec", "StandardOutput"),
        *("NoNewPrivileges", "ProtectSystem", "PrivateTmp"),
    },
    "Timer": {"OnCalendar", "RandomizedDelaySec", "FixedRandomDelay", "AccuracySec", "Persistent"},
    "Install": {"WantedBy"},
}


def minutes_of_day(line: str) -> list[int]:
    """Return at which minutes of a day cron starts a line's command (crontab(5), no more of it)."""
    minute, hour, *rest = line.split(None, 5)[:5]
    assert rest == ["*", "*", "*"]
    return [h * 60 + m for h in _field(hour, 23) for m in _field(minute, 59)]


def _field(text: str, most: int) -> range:
    among, _, step = text.partition("/")
    low, _, high = ("0", "", str(most)) if among == "*" else among.partition("-")
    first, last = int(low), int(high or low)
    assert 0 <= first <= last <= most
    return range(first, last + 1, int(step or 1))


@pytest.mark.parametrize("minutes", timetable._RHYTHMS)
@pytest.mark.parametrize("offset", [0.0, 0.37, 0.999])
def test_cron_starts_it_evenly_through_the_day(minutes: int, offset: float) -> None:
    line = Timetable(COMMAND, minutes, 600, offset).cron()
    assert line.count("\n") == 1
    assert "-23/24" not in line
    found = minutes_of_day(line)
    assert len(found) == DAY // minutes
    assert {b - a for a, b in zip(found, [*found[1:], found[0] + DAY], strict=True)} == {minutes}
    command = line.rstrip("\n").split(None, 5)[5]
    assert "%" not in command.replace(r"\%", "")  # else cron ends the line there
    command = command.replace(r"\%", "%")
    assert shlex.split(command)[-len(COMMAND) - 1 : -1] == COMMAND
    assert command.endswith(">/dev/null")
    assert subprocess.run(["sh", "-n"], input=command, text=True, check=False).returncode == 0


@pytest.mark.parametrize("minutes", [1, 15, 60, 360, DAY])
def test_units_are_what_systemd_takes(minutes: int, tmp_path: Path) -> None:
    units = Timetable(COMMAND, minutes, 600, user="root").systemd()
    assert list(units) == [SERVICE, TIMER]
    for name, text in units.items():
        read = configparser.ConfigParser(
            interpolation=None, strict=True, delimiters=("=",), comment_prefixes=("#",)
        )
        read.optionxform = str  # type: ignore[assignment,method-assign]
        read.read_string(text)
        assert {"Unit", "Service" if name == SERVICE else "Timer"} <= set(read)
        for section in read.sections():
            assert set(read[section]) <= KNOWN[section]
        (tmp_path / name).write_text(text, "utf-8")
        if name == SERVICE:
            # a oneshot knows no RuntimeMaxSec; and who has it is started once, whatever the timer
            assert (read[section]["Type"], read[section]["RuntimeMaxSec"]) == ("exec", "660")
        else:
            assert int(read["Timer"]["RandomizedDelaySec"]) < minutes * 60
            assert read["Timer"]["Persistent"] == "yes"
    if shutil.which("systemd-analyze") is None:
        return
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "toolkit-maintain" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
    when = units[TIMER].partition("OnCalendar=")[2].splitlines()[0]
    shown = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=3", "--base-time=2026-01-31 12:00:00", when],
        capture_output=True,
        text=True,
        env={"TZ": "UTC"},
        check=True,
    ).stdout
    elapsed = [line.split()[-2] for line in shown.splitlines() if "UTC" in line and ":" in line]
    at = [int(t[:2]) * 60 + int(t[3:5]) for t in elapsed]
    assert (at[1] - at[0]) % DAY == minutes % DAY


def test_it_looks_as_often_as_the_most_frequent_job_is_due() -> None:
    hour, week = timedelta(hours=1), timedelta(weeks=1)
    assert rhythm([hour, timedelta(seconds=20)]) == 1
    assert rhythm([week, 5 * hour]) == 240
    assert rhythm([week]) == rhythm([]) == DAY
