"""What a run found, as a table for people and as JSON for machines."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from toolkit.bench.measure import Comparison, Result, Target

_PACKAGES = (
    *("psycopg", "pandas", "sqlalchemy", "pyarrow", "adbc-driver-postgresql", "numpy"),
    *("redis", "pcodec", "dogpile.cache", "aiocache", "cashews"),
    *("arcticdb", "duckdb"),
)
_SHORT_MS = 1.0


def table(results: Sequence[Result]) -> Table:
    """Return the table: a line a case, below it one for each peer."""
    shown = Table(
        title="ratio: how many times faster ours is; with ≤ what it costs against the peer",
        title_justify="left",
    )
    shown.add_column("case", overflow="fold")
    shown.add_column("against", overflow="fold")
    for name in ("p50", "p99", "points/s", "ratio", "target", "met"):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        ours = result.ours
        rate = f"{result.points_per_s:,.0f}" if result.points_per_s else ""
        own, met = "; ".join(_own(result)), _verdict(result.is_own_met)
        p50, p99 = (_shown(value, result.unit) for value in (ours.p50, ours.p99))
        shown.add_row(f"[bold]{result.case}[/]: {result.what}", "", p50, p99, rate, "", own, met)
        for comparison in result.comparisons:
            shown.add_row("", *_peer(comparison, result))
        for missing in result.missing:
            target = _sign(missing.target) if missing.target else ""
            shown.add_row("", f"{missing.peer}: missing", *[""] * 4, target, "")
        shown.add_section()
    return shown


def targets(result: Result) -> str:
    """Return what a case is held to, in words."""
    held = [
        (Target(c.target, c.is_cost), c.peer.name)
        for c in result.comparisons
        if c.target is not None
    ]
    held += [(m.target, m.peer) for m in result.missing if m.target is not None]
    better = "smaller than" if result.unit == "B" else "as fast as"
    said = [
        f"{_sign(target)} {peer}" if target.is_cost else f"{_sign(target)} {better} {peer}"
        for target, peer in held
    ]
    return "; ".join([*_own(result), *said])


def _own(result: Result) -> list[str]:
    """Return what ours alone is held to."""
    said = []
    if result.ceiling is not None:
        said.append(f"≤ {_shown(result.ceiling, result.unit, digits=4)}")
    if result.least is not None:
        said.append(f"≥ {result.least:,.0f}/s")
    return said


def _sign(target: Target) -> str:
    return f"{'≤ ' if target.is_cost else ''}{target.value:g} ×"


def _peer(comparison: Comparison, result: Result) -> tuple[str, ...]:
    peer, target = comparison.peer, ""
    rate = f"{result.points / peer.p50 * 1000:,.0f}" if result.unit == "ms" else ""
    if comparison.target is not None:
        target = _sign(Target(comparison.target, comparison.is_cost))
    return (
        peer.name,
        _shown(peer.p50, result.unit),
        _shown(peer.p99, result.unit),
        rate,
        f"{comparison.ratio:,.2f} ×",
        target,
        _verdict(comparison.is_met),
    )


def _shown(value: float, unit: str = "ms", digits: int | None = None) -> str:
    """Write a value with its unit; short times in µs.

    >>> _shown(12.3456), _shown(0.0123456), _shown(0.015, digits=4), _shown(1.5, "×", 4)
    ('12.35 ms', '12.35 µs', '15 µs', '1.5 ×')
    """
    if unit == "ms" and abs(value) < _SHORT_MS:
        value, unit = value * 1000, "µs"
    return f"{value:,.2f} {unit}" if digits is None else f"{value:,.{digits}g} {unit}"


def _verdict(is_met: bool | None) -> str:
    if is_met is None:
        return ""
    return "[green]yes[/]" if is_met else "[red]no[/]"


def to_mapping(results: Sequence[Result], server: str) -> dict[str, Any]:
    """Return all of it, JSON-ready, with what it ran on."""
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "postgresql": server,
            "packages": {name: _version(name) for name in _PACKAGES},
        },
        "cases": [r.to_mapping() for r in results],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
