"""Runs of maintenance jobs as the command line shows them: what they did, or would do."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice
from toolkit.cli.failing import BUSY, FAILED

if TYPE_CHECKING:
    from toolkit_maintenance.job import Report

_VARIES = re.compile(r"(?<=_)p[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z")
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])[0-9][0-9,.]*")


def alike(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Return texts that differ only in partition, time or number together, in their order.

    >>> alike(["vacuum a_p20240101: 5 rows", "vacuum b", "vacuum a_p20240108: 1,000 rows"])
    [('vacuum a_p20240101: 5 rows', 'vacuum a_p20240108: 1,000 rows'), ('vacuum b',)]
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        found.setdefault(_NUMBER.sub("#", _VARIES.sub("*", text)), []).append(text)
    return [tuple(group) for group in found.values()]


def rolled(texts: Iterable[str]) -> list[str]:
    """Return a line for those that are alike: the first, how many more there are, and the last.

    >>> rolled(["drop a_p20240101", "drop a_p20240108", "drop a_p20240115"])
    ['drop a_p20240101 (and 2 more like it, to p20240115)']
    """
    lines = []
    for first, *more in alike(texts):
        last = _VARIES.findall(more[-1])[:1] if more else []
        upto = f", to {last[0]}" if last else ""
        lines.append(f"{first} (and {len(more):,} more like it{upto})" if more else first)
    return lines


def in_words(number: int, what: str) -> str:
    """Return a count of a report in words.

    >>> in_words(1, "tables_frozen"), in_words(1, "indexes_remade"), in_words(2, "series_warmed")
    ('1 table frozen', '1 index remade', '2 series warmed')
    """
    from toolkit.errors import counted

    noun, _, rest = what.partition("_")
    return f"{counted(number, noun)} {rest.replace('_', ' ')}".rstrip()


def seconds_of(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> float | None:
    """Return a length of time that was typed, in seconds."""
    from toolkit.errors import QueryError
    from toolkit.timegrid import Step

    try:
        return None if text is None else Step.parse(text).approximate_us / 1e6
    except QueryError:
        raise click.BadParameter(f"{text!r} is no time: write 90s, 10m or 1h") from None


def run_by_hand(
    context: click.Context,
    job: str,
    targets: Sequence[str],
    *,
    is_dry: bool,
    max_runtime: float | None,
    as_json: bool,
    is_forced: bool = False,
) -> None:
    """Run one job for what was named, show what it did, and exit as :func:`exit_code` says."""
    from toolkit.cli.render import echo_json, working
    from toolkit_maintenance.runner import run

    choice: Choice = context.obj
    with choice.tending() as store, working(job) as say, interrupting():
        store.datasets()  # what is wrong with the schema is said here
        report = run(
            store,
            job,
            targets,
            is_dry=is_dry,
            is_forced=is_forced,
            max_runtime=max_runtime,
            say=say,
        )
    if as_json:
        echo_json(report.to_mapping())
    elif is_dry:
        show_planned([report])
    else:
        _show_one(report)
    context.exit(exit_code([report], is_by_hand=True))


def exit_code(reports: Sequence[Report], *, is_by_hand: bool) -> int:
    """Return what to exit with after runs.

    Cron does not mind a job that somebody else runs, nor what cannot be done on this server; who
    asks for a job does: busy is 4, and what was not done or judged 1, as a failure is.
    """
    from toolkit_maintenance import job

    statuses = {r.status for r in reports}
    if job.FAILED in statuses:
        return FAILED
    if not is_by_hand:
        return 0
    skips = [s for r in reports for s in r.skipped if s.is_busy or not s.is_warning]
    is_all_busy = bool(skips) and all(s.is_busy for s in skips)
    if job.BUSY in statuses or (is_all_busy and not any(r.done for r in reports)):
        return BUSY
    return FAILED if any(not s.is_busy for s in skips) else 0


@contextmanager
def interrupting() -> Iterator[None]:
    """Have SIGTERM, which systemd and Kubernetes send, end a run as Ctrl-C does: it is recorded."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show_done(reports: Sequence[Report]) -> None:
    """Print what runs have done, a line a job."""
    from toolkit.cli.render import echo_table, echo_words
    from toolkit_maintenance.job import told

    rows = [(r.job, r.status, f"{r.seconds:.1f} s", r.counts) for r in reports]
    headers = ("job", "status", "took", "did")
    echo_table(headers, rows, numbers=["took"], cell=200, words=["did"])
    for report in reports:
        for said in rolled(map(str, report.skipped)):
            echo_words(told(report.job, said))
        _show_failed(report)


def _show_one(report: Report) -> None:
    """Print what a run has done, partitions of a table in one line."""
    from toolkit.cli.render import echo_table, echo_words, note
    from toolkit_maintenance.job import told

    if report.done:
        rows = [(said, len(g)) for g in alike(report.done) for said in rolled(g)]
        echo_table((report.job, "times"), rows, numbers=["times"], cell=200, words=[report.job])
    counts = "".join(f", {in_words(n, w)}" for w, n in report.counts.items())
    click.echo(f"{report.job}: {report.status} in {report.seconds:.1f} s{counts}")
    if report.status == "cut":
        note("its time was over; the next run goes on")
    for said in rolled(map(str, report.skipped)):
        echo_words(told(report.job, said), err=True)
    _show_failed(report)


def show_planned(reports: Sequence[Report]) -> None:
    """Print what would be done as SQL, the rest as its comments."""
    from toolkit.cli.render import echo_line, echo_words, sized

    for report in reports:
        if not report.planned and not report.skipped and not report.failed:
            echo_line(f"-- {report.job}: nothing to do")
        for act in report.planned:
            echo_words(f"-- {report.job}: {act.what}", then="--   ")
            if act.why:
                echo_words(f"--   ({act.why})", then="--   ")
            size = f"; {sized(act.bytes)}" if act.bytes else ""
            echo_line(f"-- lock: {act.lock}{size}")
            for statement in act.sql:
                is_comment = statement.startswith("--") and "\n" not in statement
                echo_line(statement if is_comment else f"{statement.rstrip().rstrip(';')};")
            click.echo()
        kinds = [("note" if s.is_warning else "skipped", str(s)) for s in report.skipped]
        for said in rolled(f"{kind}: {text}" for kind, text in kinds):
            echo_words(f"-- {report.job}: {said}", then="--   ")
        _show_failed(report)
    if any(r.planned for r in reports):
        click.echo("-- nothing was changed")


def _show_failed(report: Report) -> None:
    from toolkit.cli.render import echo_words, shown
    from toolkit_maintenance.job import told

    for said in rolled(report.failed):
        echo_words(shown(told(report.job, said), 1_000), err=True)
