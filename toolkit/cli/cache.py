"""The commands about what processes share: `cache stats`, `cache peek` and `cache drop`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.choice import Choice
from toolkit.cli.numbers import Seconds
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.shelved import DatasetShared, LevelShared, ShelfReport
    from toolkit.store import Store

_HEADERS = ("dataset", "spans", "size", "of memory", "outdated", "unfollowed", "moved")
_LEVEL_HEADERS = ("dataset", "level", "span", "spans", "size")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_tz = click.option(
    "--tz", default="UTC", show_default=True, help="Zone of times typed without an offset."
)


@click.group()
def cache() -> None:
    """Show what processes share in Redis, or drop it.

    It is what cache.redis in the settings names, a Redis or a Valkey.
    """


@cache.command()
@click.option(
    "--seconds",
    type=Seconds(),
    default=5.0,
    show_default=True,
    help="How long to look through its keys at most.",
)
@_json
@click.pass_obj
def stats(choice: Choice, seconds: float, as_json: bool) -> None:
    """Show how much is shared of each dataset.

    By level, with the bytes of Redis it takes, how many changes nobody has followed yet, and
    what in the server's settings does not suit a cache. Changes nothing.
    """
    from toolkit.cli.render import echo_json, note, working

    with choice.sharing() as store, working("looking through the keys"):
        report = store.describe_shared(seconds)
    if as_json:
        echo_json(_mapping(report))
        return
    _echo_report(report)
    for warning in report.warnings:
        note(f"warning: {warning}")
    if not report.is_whole:
        note(f"{seconds:g} s were over before every key was seen; --seconds gives more")


def _mapping(report: ShelfReport) -> dict[str, Any]:
    return {
        "where": report.where,
        "server": report.server,
        "warnings": report.warnings,
        "datasets": [
            {
                "dataset": d.dataset,
                "spans": d.spans,
                "bytes": d.bytes,
                "share": _share(d, report),
                "behind": d.behind,
                "moved_s": d.moved_s,
                "levels": d.levels,
                "outdated": _amount(d.outdated.spans, d.outdated.bytes),
            }
            for d in report.datasets
        ],
        "others": _amount(report.others.spans, report.others.bytes),
        "is_whole": report.is_whole,
    }


def _amount(spans: int, size: int) -> dict[str, int]:
    return {"spans": spans, "bytes": size}


def _share(dataset: DatasetShared, report: ShelfReport) -> float:
    return dataset.bytes / max(1, report.server.used_memory)


def _echo_report(report: ShelfReport) -> None:
    from toolkit.cli.render import echo_line, echo_table, sized

    rows = [
        (
            d.dataset,
            d.spans,
            sized(d.bytes),
            f"{_share(d, report):.1%}",
            d.outdated.spans,
            _behind(d),
            "never" if d.moved_s is None else f"{d.moved_s:,.0f} s ago",
        )
        for d in report.datasets
    ]
    echo_table(_HEADERS, rows, numbers=_HEADERS[1:6])
    levels = [
        (d.dataset, level.level, f"{level.length_s / 3600:g} h", level.spans, sized(level.bytes))
        for d in report.datasets
        for level in d.levels
    ]
    if levels:
        echo_table(_LEVEL_HEADERS, levels, numbers=_LEVEL_HEADERS[2:])
    server, others = report.server, report.others
    limit = f" of {sized(server.max_memory)}" if server.max_memory else ""
    echo_line(
        f"{server.server} {server.version} at {report.where}: {sized(server.used_memory)}{limit} "
        f"used, {counted(server.keys, 'keys')}, maxmemory-policy {server.policy}"
    )
    if others.spans:
        echo_line(f"{counted(others.spans, 'spans')} of other databases ({sized(others.bytes)})")


def _behind(dataset: DatasetShared) -> str:
    if dataset.moved_s is None:
        return ""
    return "log was cut" if dataset.behind is None else f"{dataset.behind:,}"


@cache.command()
@click.argument("dataset")
@click.argument("series")
@click.argument("start")
@click.argument("end")
@_tz
@_json
@click.pass_obj
def peek(
    choice: Choice, dataset: str, series: str, start: str, end: str, tz: str, as_json: bool
) -> None:
    """Show which spans of a series are shared, and what is missing.

    Level by level: up to when a span's rows reach, how many they are, the bytes of Redis it
    takes and how long it will live. Reads nothing of the series from the database.
    """
    from toolkit.cli.moments import read_time
    from toolkit.cli.render import echo_json, echo_line, echo_table

    now = datetime.now(UTC)
    span = [read_time(t, tz, now=now, what=w) for t, w in ((start, "START"), (end, "END"))]
    with choice.sharing() as store:
        levels = store.peek_shared(dataset, series, span[0], span[1])
    if as_json:
        echo_json({"levels": [_level(level) for level in levels]})
        return
    headers = ("level", "start", "upto", "rows", "size", "life")
    rows = [row for level in levels for row in _rows(level)]
    echo_table(headers, rows, numbers=headers[3:])
    for level in levels:
        missing = "something" if level.missing else "nothing"
        spans = counted(len(level.found), "spans", "are")
        echo_line(f"{level.level}: {spans} there, {missing} is missing")


def _level(level: LevelShared) -> dict[str, Any]:
    from toolkit.timegrid import to_datetime

    found = [
        {
            "start": to_datetime(s.start),
            "upto": to_datetime(s.upto),
            "rows": s.rows,
            "bytes": s.bytes,
            "life_s": s.life_s,
        }
        for s in level.found
    ]
    missing = [{"start": to_datetime(m.start), "end": to_datetime(m.end)} for m in level.missing]
    return {"level": level.level, "found": found, "missing": missing}


def _rows(level: LevelShared) -> Iterator[tuple[object, ...]]:
    """Yield what is there and what is not, in order of time."""
    from toolkit.cli.render import sized
    from toolkit.timegrid import to_datetime

    rows: list[tuple[int, int, tuple[object, ...]]] = [
        (s.start, s.upto, (s.rows, sized(s.bytes), f"{s.life_s:,.0f} s")) for s in level.found
    ]
    rows += [(m.start, m.end, ("missing", "", "")) for m in level.missing]
    for start, upto, cells in sorted(rows, key=lambda row: row[0]):
        yield level.level, to_datetime(start), to_datetime(upto), *cells


@cache.command()
@click.argument("dataset")
@click.argument("series", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Instead of SERIES: all of them.")
@click.option("--from", "start", metavar="TIME", help="Only spans that hold what is later.")
@click.option("--to", "end", metavar="TIME", help="Only spans that hold what is earlier.")
@_tz
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
@click.pass_obj
def drop(
    choice: Choice,
    dataset: str,
    series: tuple[str, ...],
    every: bool,
    start: str | None,
    end: str | None,
    tz: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Drop what is shared of series, or of a whole dataset.

    SERIES are names or patterns like 'BTC-*'. The data stays: what is dropped is read from the
    database again. Not needed for what the change log tells. Processes that have read it keep
    what they remember themselves.
    """
    if bool(series) == every:
        raise click.UsageError("give SERIES, or --all for every one")
    from toolkit.cli.moments import read_time
    from toolkit.cli.render import confirmed, echo_json

    now = datetime.now(UTC)
    low = None if start is None else read_time(start, tz, now=now, what="--from")
    high = None if end is None else read_time(end, tz, now=now, what="--to")
    with choice.sharing() as store:
        _check_known(store, dataset, series)
        what = ", ".join(series) or "all series"
        confirmed(f"Drop what is shared of {what} of {dataset}?", is_sure=yes)
        for pattern in series or (None,):
            store.forget(dataset, pattern, low, high)
        count = int(store.stats()["redis_dropped"])
    if as_json:
        echo_json({"spans": count})
    else:
        click.echo(f"{counted(count, 'spans')} dropped")


def _check_known(store: Store, dataset: str, patterns: tuple[str, ...]) -> None:
    from toolkit.errors import UnknownName

    names = [s.name for s in store.series(dataset)]
    for pattern in patterns:
        if pattern not in names and not any(fnmatchcase(n, pattern) for n in names):
            raise UnknownName("series", pattern, names, f"dataset {dataset!r}")
