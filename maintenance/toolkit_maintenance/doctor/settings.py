"""Checks of the server's settings against its machine and workload, by formulas that have a source.

pgtune: https://github.com/le0pard/pgtune; the others are named where they are used. What differs by
less than a twentieth, or from advice in the harmless direction, is silent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from toolkit_maintenance.doctor.check import Answers, Check, altering, granting, unknown
from toolkit_maintenance.doctor.finding import OK, RELOAD, UNKNOWN, WARN, Finding
from toolkit_maintenance.doctor.machine import Machine

TOLERANCE = 0.05
_KB, _MB, _GB = 1 << 10, 1 << 20, 1 << 30
_SIZES = {"B": 1, "kB": _KB, "MB": _MB, "GB": _GB, "TB": _GB << 10}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_WAL = {"web": (1, 4), "oltp": (2, 8), "dw": (4, 16), "mixed": (1, 4)}
LIBRARY = "pg_stat_statements"
_RIGHT = "pg_read_all_settings"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as the server has it; ``value`` in bytes, seconds or plain numbers."""

    name: str
    setting: str
    unit: str
    context: str
    is_pending: bool
    default: str | None

    @property
    def scale(self) -> float:
        match = re.fullmatch(r"(\d*)(\w*)", self.unit)
        assert match is not None
        number, unit = int(match[1] or 1), match[2]
        return number * (_SIZES.get(unit) or _TIMES.get(unit) or 1)

    @property
    def value(self) -> float:
        return float(self.setting) * self.scale

    @property
    def is_size(self) -> bool:
        return self.unit.lstrip("0123456789") in _SIZES

    def shown(self, value: float) -> str:
        """Return a value as the configuration file takes it, with a unit a person can read."""
        if value < 0:
            return "-1"
        if self.is_size and value > 0:
            whole = int(value)
            unit = next(u for u in ("GB", "MB", "kB", "B") if whole % _SIZES[u] == 0)
            return f"{whole // _SIZES[unit]}{unit}"
        if self.unit in _TIMES and value > 0:
            unit = next(
                u for u in ("min", "s", "ms") if round(value * 1000) % (_TIMES[u] * 1000) == 0
            )
            return f"{value / _TIMES[unit]:g}{unit}"
        return f"{value:g}" if self.unit not in _TIMES else f"{value / self.scale:g}"

    def counted(self, value: float) -> str:
        """Return a value in the setting's own unit, as parameter groups of providers take it."""
        count = -1.0 if value < 0 else value / self.scale
        return str(round(count)) if count == round(count) else f"{count:g}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a setting should be; from ``low`` to ``high`` nothing is said. ``why`` and by whom."""

    value: float
    low: float
    high: float
    why: str


@dataclass(frozen=True, slots=True)
class Server:
    """What formulas go by: the machine, the settings as they are, the version, our own pool."""

    machine: Machine
    now: Mapping[str, Setting]
    version: int
    pool: int


Formula = Callable[[Server], Wanted]


class Needs(Exception):
    """A formula needs to know more of the machine; says which option tells it."""


def _known(value: int | None, option: str) -> int:
    if value is None:
        raise Needs(option)
    return value


def _least(value: float, why: str) -> Wanted:
    return Wanted(value, value * (1 - TOLERANCE), float("inf"), why)


def _even(value: float) -> float:
    """Return a size rounded down to what is easy to read: whole MB, below that whole kB."""
    return value // _MB * _MB if value >= _MB else value // _KB * _KB


def shared_buffers(on: Server) -> Wanted:
    """A quarter of memory; more than 40 % "is unlikely to work better" (PostgreSQL docs)."""
    ram = _known(on.machine.ram, "--ram")
    value = _even(ram / 4)
    return Wanted(value, value * (1 - TOLERANCE), 0.4 * ram, "a quarter of memory")


def effective_cache_size(on: Server) -> Wanted:
    """Three quarters of memory (pgtune): what the planner may expect to be cached somewhere."""
    ram = _known(on.machine.ram, "--ram")
    value = _even(ram * 3 / 4)
    return Wanted(value, value * (1 - TOLERANCE), ram, "three quarters of memory")


def work_mem(on: Server) -> Wanted:
    """(memory - shared_buffers) / (3 * max_connections) / parallel workers; half of it for dw and
    mixed (pgtune), and no less than the default, 4 MB. So much for every sort of every connection
    at once would still fit: above four times that it would not.
    """
    ram = _known(on.machine.ram, "--ram")
    cpus = _known(on.machine.cpus, "--cpus")
    each = (ram - ram / 4) / (3 * on.now["max_connections"].value)
    each /= max(1, min(4, cpus // 2))
    each /= 2 if on.machine.workload in ("dw", "mixed") else 1
    value = max(4 * _MB, _even(each))
    return Wanted(
        value, value * (1 - TOLERANCE), 4 * value, "what all connections can have at once"
    )


def maintenance_work_mem(on: Server) -> Wanted:
    """A sixteenth of memory, for dw an eighth, at most 2 GB (pgtune)."""
    ram = _known(on.machine.ram, "--ram")
    value = min(2 * _GB, _even(ram / (8 if on.machine.workload == "dw" else 16)))
    return Wanted(value, value * (1 - TOLERANCE), ram / 4, "a sixteenth of memory, up to 2 GB")


def wal_buffers(on: Server) -> Wanted:
    """-1: a thirty-second of shared_buffers, at most a segment of 16 MB (docs)."""
    value = max(64 * _KB, min(16 * _MB, on.now["shared_buffers"].value // 32 // 8192 * 8192))
    low = value * (1 - TOLERANCE)
    return Wanted(-1, low, float("inf"), "a thirty-second of shared_buffers, up to 16 MB")


def random_page_cost(on: Server) -> Wanted:
    """1.1 where a random page costs hardly more than the next one; 4 on hdd (pgtune)."""
    if on.machine.storage is None:
        raise Needs("--storage")
    if on.machine.storage == "hdd":
        return Wanted(4.0, 2.0, 8.0, "disks that turn")
    return Wanted(1.1, 1.0, 1.5, f"{on.machine.storage}: a random page costs hardly more")


def effective_io_concurrency(on: Server) -> Wanted:
    """200 for ssd, 300 for san, 2 for hdd (pgtune); since PostgreSQL 18 reads are asynchronous and
    the default of 16 does (docs).
    """
    if on.machine.storage is None:
        raise Needs("--storage")
    value = {"ssd": 200, "san": 300, "hdd": 2}[on.machine.storage]
    value = min(value, 16) if on.version >= 180_000 else value
    low = 1 if on.machine.storage == "hdd" else value * (1 - TOLERANCE)
    return Wanted(value, low, float("inf"), f"reads that {on.machine.storage} takes at once")


def checkpoint_completion_target(on: Server) -> Wanted:
    """0.9: writes spread over almost all of the time between two checkpoints (docs, pgtune)."""
    return Wanted(0.9, 0.9 * (1 - TOLERANCE), 1.0, "writes spread over the time between two")


def checkpoint_timeout(on: Server) -> Wanted:
    """15 minutes: fewer pages are written whole; a crash takes longer to recover (EDB's guide to
    performance-related parameters).
    """
    return Wanted(900, 900 * (1 - TOLERANCE), 3600, "fewer pages are written whole to the log")


def max_wal_size(on: Server) -> Wanted:
    """4 GB, for oltp 8, for dw 16 (pgtune): the clock decides on checkpoints, not the log."""
    return _least(_WAL[on.machine.workload][1] * _GB, "the clock decides when to checkpoint")


def min_wal_size(on: Server) -> Wanted:
    """1 GB, for oltp 2, for dw 4 (pgtune): so much of the log is used again, not made anew."""
    return _least(_WAL[on.machine.workload][0] * _GB, "its files are used again, not made anew")


def max_connections(on: Server) -> Wanted:
    """Room for this store's pool; and no more than cores can serve: twice as many as there are are
    at work at once (PostgreSQL wiki, "Number Of Database Connections"), here ten times that, and
    100 anyway.
    """
    cpus = _known(on.machine.cpus, "--cpus")
    least, most = on.pool + 10, max(100, 20 * cpus)
    value = max(100, least)
    return Wanted(value, least, max(most, value), "a pooler shares fewer among many clients")


def default_statistics_target(on: Server) -> Wanted:
    """100, for dw 500 (pgtune)."""
    value = 500 if on.machine.workload == "dw" else 100
    return Wanted(value, value * (1 - TOLERANCE), 1_000, "what plans go by")


def log_min_duration_statement(on: Server) -> Wanted:
    """A second: slow statements are in the log, and the log is not full of others."""
    return Wanted(1.0, 0.1, 60.0, "slow statements are in the log, and only those")


FORMULAS: dict[str, Formula] = {
    f.__name__: f
    for f in (
        shared_buffers,
        effective_cache_size,
        work_mem,
        maintenance_work_mem,
        wal_buffers,
        random_page_cost,
        effective_io_concurrency,
        checkpoint_completion_target,
        checkpoint_timeout,
        max_wal_size,
        min_wal_size,
        max_connections,
        default_statistics_target,
        log_min_duration_statement,
    )
}
NAMES = (*FORMULAS, "shared_preload_libraries", "autovacuum")


def settings_of(answers: Answers) -> dict[str, Setting]:
    """Return the primary's settings by name; those that the role may not see are not there."""
    return {row[0]: Setting(*row) for row in answers["settings"]}


def judge_setting(key: str, answers: Answers) -> Finding:
    """Compare one setting with its formula."""
    check, now = f"settings-{key}", settings_of(answers)
    if key not in now:
        return unknown(check, "the server has no such setting, or does not show it")
    setting = now[key]
    try:
        pool = answers.settings.pool.max_size
        server = Server(answers.machine, now, answers.of_primary.version, pool)
        wanted = FORMULAS[key](server)
    except Needs as error:
        return unknown(
            check,
            f"the server's machine is not known from here: give {error}",
            setting=key,
            value=setting.shown(setting.value),
        )
    shown = setting.shown(setting.value)
    told = {"setting": key, "value": shown}
    if wanted.low <= setting.value <= wanted.high:
        return Finding(check, OK, f"{shown} will do", told)
    if _is_modest(answers):
        return Finding(check, OK, f"{shown}, {_MODEST}", told)
    return _advised(check, setting, shown, wanted)


_MODEST = "as toolkit up has it: it leaves the machine to others; --ram … asks for advice"


def _is_modest(answers: Answers) -> bool:
    """Whether the server is one of `toolkit up`, and nobody has asked what its machine could do."""
    return answers.of_primary.is_local and not answers.is_described


def _advised(check: str, setting: Setting, shown: str, wanted: Wanted) -> Finding:
    advised, needs_restart = setting.shown(wanted.value), setting.context == "postmaster"
    evidence = {
        "setting": setting.name,
        "value": shown,
        "advised": advised,
        "parameter": setting.counted(wanted.value),
        "needs_restart": needs_restart,
    }
    when = "after a restart" if needs_restart else "after a reload"
    reason = f"{shown}, and {advised} is advised: {wanted.why} ({when})"
    if setting.name == "max_connections":  # a standby does not start with less than its primary
        reason += "; standbys go first where it grows, and last where it shrinks"
    if setting.is_pending:
        reason += "; a change to it waits for a restart already"
    fix = altering(setting.name, advised, needs_restart=needs_restart)
    return Finding(check, WARN, reason, evidence, fix)


def judge_libraries(answers: Answers) -> Finding:
    """pg_stat_statements is loaded: without it nobody knows which statements take the time."""
    check = "settings-shared_preload_libraries"
    setting = settings_of(answers).get("shared_preload_libraries")
    is_counting = "statements_since" in answers.rows
    if is_counting:
        return Finding(check, OK, f"{LIBRARY} is loaded")
    if setting is None:
        why = f"role {answers.of_primary.role} lacks {_RIGHT}, and does not see it"
        return unknown(check, why, granting(answers, _RIGHT))
    loaded = [x.strip() for x in setting.setting.split(",") if x.strip()]
    if LIBRARY in loaded:
        return Finding(
            check,
            WARN,
            f"{LIBRARY} is loaded, but not in this database",
            {"setting": setting.name, "value": setting.setting},
            (f"CREATE EXTENSION IF NOT EXISTS {LIBRARY}",),
        )
    if _is_modest(answers):
        return Finding(check, OK, f"without {LIBRARY}, {_MODEST}")
    advised = ",".join([*loaded, LIBRARY])
    evidence = {
        "setting": setting.name,
        "value": setting.setting,
        "advised": advised,
        "parameter": advised,
        "needs_restart": True,
    }
    return Finding(
        check,
        WARN,
        f"{LIBRARY} is not loaded: nobody knows which statements take the time (after a restart, "
        f"and CREATE EXTENSION {LIBRARY})",
        evidence,
        altering(setting.name, *loaded, LIBRARY, needs_restart=True),
    )


CHECKS = (
    *(
        Check(f"settings-{key}", f"the setting {key}", ("settings",), partial(judge_setting, key))
        for key in FORMULAS
    ),
    Check(
        "settings-shared_preload_libraries",
        f"whether {LIBRARY} is loaded",
        ("settings",),
        judge_libraries,
        ("statements_since",),
    ),
)


# -- written for who sets them ------------------------------------------------------------------


def written(findings: Iterable[Finding], how: str) -> str:
    """Return the advice on settings as text: ``alter`` (ALTER SYSTEM), ``conf`` (a fragment of
    postgresql.conf) or ``provider`` (names and values in each setting's own unit, as the parameter
    groups of managed servers take them).
    """
    lines, advised = [], _advised_of(findings)
    for finding in advised:
        told: Mapping[str, Any] = finding.evidence
        if how == "alter":
            restart = "  -- needs a restart" if told["needs_restart"] else ""
            lines.append(f"{finding.fix[0]};{restart}")
        elif how == "conf":
            restart = "; needs a restart" if told["needs_restart"] else ""
            value = str(told["advised"]).replace("'", "''")
            lines.append(f"{told['setting']} = '{value}'  # was {told['value']}{restart}")
        else:
            lines.append(f"{told['setting']} = {told['parameter']}")
    if how == "alter" and advised:
        lines.insert(0, "-- as an administrator:")
        lines += [f"{RELOAD};"] if any(RELOAD in f.fix for f in advised) else []
    if how == "conf" and advised:
        lines.insert(0, "# by an administrator, in postgresql.conf; a reload takes it up")
    return "\n".join(lines)


def remarks(findings: Sequence[Finding], how: str) -> list[str]:
    """Return what has to be said beside :func:`written`: what is left out of it, and why."""
    ours = [f for f in findings if f.id.startswith("settings-")]
    if not ours:
        return ["--as is for the advice on settings, and no settings-… is among --only"]
    advised, said = _advised_of(ours), []
    others = [f for f in ours if f.is_bad and f not in advised]
    if not advised and not others:
        said.append("nothing is advised for the settings that could be judged")
    restarts = [f.evidence["setting"] for f in advised if f.evidence["needs_restart"]]
    if how == "provider" and restarts:
        said.append(f"after a restart: {', '.join(restarts)}")
    if any(_MODEST in f.reason for f in ours):
        said.append(
            "the server is of toolkit up, which leaves the machine to others; --ram, --cpus "
            "or --storage ask for advice"
        )
    said += [
        f"found, but mended by no setting of the server: {f.id}: {f.reason}; toolkit doctor "
        f"--only {f.id} shows the SQL"
        for f in others
    ]
    whys: dict[str, list[str]] = {}
    for finding in ours:
        if finding.status == UNKNOWN:
            whys.setdefault(finding.reason, []).append(finding.id.removeprefix("settings-"))
    said += [f"left out: {', '.join(names)}: {why}" for why, names in whys.items()]
    return said


def _advised_of(findings: Iterable[Finding]) -> list[Finding]:
    return [f for f in findings if f.is_bad and "advised" in f.evidence]
