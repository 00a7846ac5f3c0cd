"""The commands about tables and indexes: `vacuum` and `reindex`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice
from toolkit.cli.failing import BUSY, FAILED, Failure
from toolkit.errors import QueryError
from toolkit.timegrid import Step

if TYPE_CHECKING:
    from toolkit_maintenance.job import Report

_OPTIONS = (
    click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing."),
    click.option("--force", is_flag=True, help="Do what is named, needed or not."),
    click.option("--max-runtime", metavar="TIME", help="End after that: 10m, 2h."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
_PARTITION = re.compile(r"_p[0-9]{8}")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("names", nargs=-1, metavar="[DATASET|TABLE]...")
@_options
@click.pass_context
def vacuum(
    context: click.Context,
    names: tuple[str, ...],
    dry_run: bool,
    force: bool,
    max_runtime: str | None,
    as_json: bool,
) -> None:
    """Vacuum, freeze and analyze the tables that need it.

    Of the whole schema, or what is named: a dataset is all that is kept of it, a table with
    partitions all of them. The worst first; what somebody else works on is passed over, and if
    that is all, it exits 4.
    """
    _tend(context, "vacuum", names, dry_run, force, max_runtime, as_json)


@click.command()
@click.argument("names", nargs=-1, metavar="[INDEX|TABLE|DATASET]...")
@_options
@click.pass_context
def reindex(
    context: click.Context,
    names: tuple[str, ...],
    dry_run: bool,
    force: bool,
    max_runtime: str | None,
    as_json: bool,
) -> None:
    """Make the indexes anew that are much larger than they need to be.

    Of the whole schema, or what is named. Readers and writers go on meanwhile. The worst first,
    as measured; what an interrupted run left behind is removed. What somebody else works on is
    passed over, and if that is all, it exits 4.
    """
    _tend(context, "reindex", names, dry_run, force, max_runtime, as_json)


def _tend(
    context: click.Context,
    job: str,
    names: tuple[str, ...],
    is_dry: bool,
    is_forced: bool,
    max_runtime: str | None,
    as_json: bool,
) -> None:
    from toolkit.cli.render import echo_json, working
    from toolkit_maintenance.runner import run

    if is_forced and not names:
        raise click.UsageError("--force is for what is named: give a dataset, a table or an index")
    choice: Choice = context.obj
    seconds = _seconds(max_runtime)
    with choice.store() as store, working(job) as say:
        report = run(
            store,
            job,
            names,
            is_dry=is_dry,
            is_forced=is_forced,
            max_runtime=seconds,
            say=say,
        )
    if as_json:
        echo_json(report.to_mapping())
    else:
        _show(report)
    is_busy = not report.done and any(s.is_busy for s in report.skipped)
    if report.status == "busy" or (is_busy and not is_dry):
        raise Failure(f"{job}: " + "; ".join(str(s) for s in report.skipped), BUSY)
    context.exit(FAILED if report.failed else 0)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return Step.parse(text).approximate_us / 1e6
    except QueryError as error:
        raise click.UsageError(f"--max-runtime: {error}") from None


def _show(report: Report) -> None:
    from toolkit.cli.render import echo_line, echo_table, note, sized

    if report.planned:
        for act in report.planned:
            echo_line(f"{act.what} ({sized(act.bytes)}): {act.why}")
            for statement in act.sql:
                echo_line(f"    {statement}")
            echo_line(f"    lock: {act.lock}")
        click.echo(f"{len(report.planned):,} to be done; nothing was changed")
    elif report.done:
        rows = Counter(_PARTITION.sub("_p*", d) for d in report.done)
        table: list[Sequence[object]] = [(what, count) for what, count in rows.items()]
        echo_table((report.job, "times"), table, numbers=["times"])
        click.echo(f"{len(report.done):,} done in {report.seconds:.1f} s")
    elif report.status in ("nothing", "skipped"):
        click.echo(f"nothing to {report.job}")
    if report.status == "cut":
        note("its time was over; the next run goes on")
    for skip in report.skipped:
        if report.done or not skip.is_busy:
            note(str(skip))
    for failed in report.failed:
        note(failed)
