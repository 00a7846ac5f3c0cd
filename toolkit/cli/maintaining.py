"""The commands `toolkit maintain` and `toolkit jobs`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice
from toolkit.cli.running import (
    exit_code,
    interrupting,
    rolled,
    seconds_of,
    show_done,
    show_planned,
)

if TYPE_CHECKING:
    from toolkit.options import MaintenanceOptions
    from toolkit_maintenance.records import JobState
    from toolkit_maintenance.timetable import Timetable

_UNITS_RUNTIME_S = 3600.0


@click.command()
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@click.option("--dry-run", is_flag=True, help="Print the SQL, what it locks and how much it is.")
@click.option(
    "--max-runtime", callback=seconds_of, metavar="TIME", help="End after so long: 90s, 10m, 1h."
)
@click.option("--print-cron", is_flag=True, help="Print a line for a crontab, and do nothing else.")
@click.option("--print-systemd", is_flag=True, help="Print a service and its timer for systemd.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def maintain(
    context: click.Context,
    jobs: tuple[str, ...],
    dry_run: bool,
    max_runtime: float | None,
    print_cron: bool,
    print_systemd: bool,
    as_json: bool,
) -> None:
    """Run the maintenance jobs that are due.

    Or those named, due or not. This is what cron calls: a job that runs already is passed over,
    one that was cut or killed goes on, and however many turns were missed it runs once. Exits 1
    if one failed; of those named, 4 if one runs already, 1 if one could not do or judge all.
    """
    choice: Choice = context.obj
    if print_cron and print_systemd:
        raise click.UsageError("--print-cron and --print-systemd: give one of the two")
    if print_cron or print_systemd:
        _print_timetable(choice, jobs, max_runtime, print_systemd, as_json)
        return
    from toolkit.cli.render import echo_json, working
    from toolkit_maintenance.runner import maintain

    with choice.tending() as store, working("maintaining") as say, interrupting():
        reports = maintain(
            store, jobs or None, always=bool(jobs), is_dry=dry_run, max_runtime=max_runtime, say=say
        )
    if as_json:
        echo_json({"dry_run": dry_run, "reports": [r.to_mapping() for r in reports]})
    elif not reports:
        comment = "-- " if dry_run else ""
        click.echo(f"{comment}nothing is due; toolkit jobs says when something will be")
    elif dry_run:
        show_planned(reports)
    else:
        show_done(reports)
    context.exit(exit_code(reports, is_by_hand=bool(jobs)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def jobs(choice: Choice, as_json: bool) -> None:
    """Show when each job ran, how it ended, and when it is due."""
    from toolkit.cli.render import echo_json
    from toolkit_maintenance.runner import jobs_at

    with choice.store() as store:
        states, now = jobs_at(store)
    if as_json:
        echo_json(states)
    else:
        _show_states(states, now)


def _show_states(states: Sequence[JobState], now: datetime) -> None:
    from toolkit.cli.render import ago, echo_table, echo_words, lasting
    from toolkit_maintenance.job import told

    def when(moment: datetime | None) -> str | None:
        return None if moment is None else ago(moment, now)

    headers = ("job", "every", "last run", "ended", "takes", "last success", "failed", "next")
    rows = [
        (
            s.job,
            s.every or "by hand",
            when(s.started_at),
            s.status or "never",
            None if s.seconds is None else lasting(s.seconds),
            when(s.success_at),
            s.failures or None,
            "now" if s.next_at is not None and s.next_at <= now else when(s.next_at),
        )
        for s in states
    ]
    echo_table(headers, rows, numbers=["takes", "failed"], words=())
    for state in states:
        for said in rolled(state.said):
            echo_words(told(state.job, said))


def _print_timetable(
    choice: Choice, jobs: Sequence[str], max_runtime: float | None, is_systemd: bool, as_json: bool
) -> None:
    from toolkit.cli.render import echo_json, note

    table = _timetable(choice, jobs, max_runtime)
    if not is_systemd and "--config" not in table.command:
        note(
            "no --config and no configuration file here: run by cron, which knows nothing of "
            "TOOLKIT_DSN unless the crontab sets it, this is for the local servers"
        )
    if not is_systemd:
        if as_json:
            echo_json({"cron": table.cron()})
            return
        click.echo(
            "# for crontab -e; a job that runs still when the next minute comes is left to it"
        )
        click.echo("# a password belongs in the file of --config, or in ~/.pgpass")
        click.echo(table.cron(), nl=False)
        return
    units = table.systemd()
    if as_json:
        echo_json(units)
        return
    for name, text in units.items():
        click.echo(f"# /etc/systemd/system/{name}\n{text}")
    click.echo(f"# systemctl daemon-reload && systemctl enable --now {list(units)[-1]}")


def _timetable(choice: Choice, jobs: Sequence[str], max_runtime: float | None) -> Timetable:
    import getpass
    import random

    from toolkit_maintenance.timetable import Timetable, rhythm

    if choice.dsn is not None:
        raise click.UsageError(
            "--dsn would stand there for others to read, with its password: give --config, or set "
            "TOOLKIT_DSN for who runs it"
        )
    limit = round(_UNITS_RUNTIME_S if max_runtime is None else max_runtime)
    options = choice.settings().maintenance
    command = [*_program(), *_flags(choice), "maintain", *jobs, "--max-runtime", _step(limit)]
    intervals = _intervals(options, jobs)
    offset = random.random()  # noqa: S311 - so that many machines do not start at once
    return Timetable(command, rhythm(intervals), limit, offset, getpass.getuser())


def _step(seconds: int) -> str:
    """Return seconds as a step.

    >>> _step(3600), _step(90)
    ('1h', '90s')
    """
    unit, length = next((u, n) for u, n in (("h", 3600), ("m", 60), ("s", 1)) if seconds % n == 0)
    return f"{seconds // length}{unit}"


def _intervals(options: MaintenanceOptions, jobs: Sequence[str]) -> list[timedelta]:
    from toolkit.errors import UnknownName
    from toolkit_maintenance.registry import JOBS

    for job in jobs:
        if job not in JOBS:
            raise UnknownName("job", job, JOBS)
    found = (options.every(job) for job in jobs or JOBS)
    return [every for every in found if every is not None]


def _program() -> list[str]:
    """Return the command by its whole path: cron and systemd know no PATH of ours."""
    import shutil
    import sys
    from pathlib import Path

    beside = shutil.which("toolkit", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("toolkit")
    if found is not None:
        return [str(Path(found).absolute())]
    return [sys.executable, "-c", "from toolkit.cli import main; main()"]


def _flags(choice: Choice) -> list[str]:
    from pathlib import Path

    from toolkit.config import FILE, environment

    given = choice.config or environment().get("TOOLKIT_CONFIG")
    file = Path(given or FILE)
    flags = ["--config", str(file.absolute())] if given or file.is_file() else []
    return [*flags, *(["--schema", choice.schema] if choice.schema else [])]
