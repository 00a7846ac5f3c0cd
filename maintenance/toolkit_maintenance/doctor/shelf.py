"""Checks of the Redis or Valkey that processes share: whether it is set up as a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from toolkit_maintenance.doctor.check import Answers, Check
from toolkit_maintenance.doctor.finding import OK, WARN, Finding

Told = Mapping[str, str]
Verdict = tuple[str, tuple[str, ...]] | None  # what is wrong, and what mends it


def _maxmemory(told: Told) -> Verdict:
    limit, whole = int(told["maxmemory"]), int(told.get("total_system_memory", "0"))
    advised = f"CONFIG SET maxmemory {whole // 2 or 1 << 30}"
    if not limit:
        return "nothing limits what it takes of the machine's memory", (advised,)
    if whole and limit > 0.8 * whole:
        return "more than four fifths of the machine's memory: there is more to keep", (advised,)
    return None


def _policy(told: Told) -> Verdict:
    if told["maxmemory-policy"] != "noeviction":
        return None
    return (
        "a server that is full takes nothing new, and keeps what nobody reads",
        ("CONFIG SET maxmemory-policy allkeys-lru",),
    )


def _persistence(told: Told) -> Verdict:
    fix = []
    if told["save"]:
        fix.append('CONFIG SET save ""')
    if told["appendonly"] == "yes":
        fix.append("CONFIG SET appendonly no")
    why = "it writes to disk what a cache can have again, and forks for it"
    return (why, tuple(fix)) if fix else None


def _keepalive(told: Told) -> Verdict:
    if 0 < int(told["tcp-keepalive"]) <= 3600:
        return None
    return "connections whose client is gone stay", ("CONFIG SET tcp-keepalive 300",)


def _timeout(told: Told) -> Verdict:
    if int(told["timeout"]) == 0 or int(told["timeout"]) >= 300:
        return None
    return (
        "idle connections of pools are cut: the next call pays for a new one",
        ("CONFIG SET timeout 0",),
    )


_VERDICTS: dict[str, tuple[tuple[str, ...], Callable[[Told], Verdict]]] = {
    "redis-maxmemory": (("maxmemory",), _maxmemory),
    "redis-policy": (("maxmemory-policy",), _policy),
    "redis-persistence": (("save", "appendonly"), _persistence),
    "redis-tcp-keepalive": (("tcp-keepalive",), _keepalive),
    "redis-timeout": (("timeout",), _timeout),
}


def judge(check: str, answers: Answers) -> Finding:
    """Judge one thing of how the server is set up.

    Redis documentation, "Key eviction" and "Redis persistence".
    """
    keys, verdict = _VERDICTS[check]
    told: dict[str, str] = dict(answers["redis"])
    evidence = {key: told[key] for key in keys}
    said = ", ".join(f"{k} is {v or 'empty'}" for k, v in evidence.items())
    wrong = verdict(told)
    if wrong is None:
        return Finding(check, OK, f"{said}: suits a cache", evidence)
    why, fix = wrong
    return Finding(check, WARN, f"{said}: {why}", evidence, fix)


CHECKS = tuple(
    Check(key, f"the cache server's {', '.join(keys)}", ("redis",), partial(judge, key))
    for key, (keys, _) in _VERDICTS.items()
)
"""Only where ``cache.redis`` is set."""
