"""The commands about tables and indexes: `vacuum` and `reindex`."""

from __future__ import annotations

from collections.abc import Callable

import click

from toolkit.cli.running import run_by_hand, seconds_of

_OPTIONS = (
    click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing."),
    click.option("--force", is_flag=True, help="Do what is named, needed or not."),
    click.option(
        "--max-runtime", callback=seconds_of, metavar="TIME", help="End after that: 10m, 2h."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


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
    max_runtime: float | None,
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
    max_runtime: float | None,
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
    max_runtime: float | None,
    as_json: bool,
) -> None:
    if is_forced and not names:
        raise click.UsageError("--force is for what is named: give a dataset, a table or an index")
    run_by_hand(
        context,
        job,
        names,
        is_dry=is_dry,
        is_forced=is_forced,
        max_runtime=max_runtime,
        as_json=as_json,
    )
