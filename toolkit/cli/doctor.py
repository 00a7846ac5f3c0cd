"""The command `toolkit doctor`: what is wrong with database and servers, and what mends it."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice

if TYPE_CHECKING:
    from toolkit_maintenance.doctor import Examination, Machine

_MOST_FIXES = 5  # a check; --json has them all


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="ID",
    help="Only this check, or those of a pattern like 'index-*'; may be given again.",
)
@click.option(
    "--as",
    "how",
    type=click.Choice(["alter", "provider", "conf"]),
    help="Print nothing but the advice on settings: as ALTER SYSTEM, as a provider's parameters "
    "(each in its own unit), or as a fragment of postgresql.conf.",
)
@click.option("--ram", metavar="SIZE", help="Memory of the primary's machine: 16GB.")
@click.option("--cpus", type=click.IntRange(1), help="Its cores.")
@click.option("--storage", type=click.Choice(["ssd", "hdd", "san"]), help="Its disks.")
@click.option(
    "--workload",
    type=click.Choice(["web", "oltp", "dw", "mixed"]),
    default="mixed",
    show_default=True,
    help="What it is used for, as pgtune has it: many small reads, many writes, long reads.",
)
@click.option(
    "--snapshot",
    is_flag=True,
    help="Keep what statements took until now; the next time shows what has become slower.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
@click.pass_context
def doctor(
    context: click.Context,
    choice: Choice,
    only: tuple[str, ...],
    how: str | None,
    ram: str | None,
    cpus: int | None,
    storage: str | None,
    workload: str,
    snapshot: bool,
    as_json: bool,
) -> None:
    """Check the database and its servers, and say what mends them.

    Changes nothing. What cannot be judged is unknown, and says what would make it known. Advice
    on settings goes by the machine: described by --ram, --cpus and --storage, or looked at where
    the server is on this one. Exits 1 if anything is found.
    """
    from toolkit.cli.render import echo_json, echo_line, working
    from toolkit_maintenance.doctor import Machine, examine
    from toolkit_maintenance.doctor.machine import read_size
    from toolkit_maintenance.doctor.settings import written

    if how and as_json:
        raise click.UsageError("give --as or --json, not both")
    machine: Machine = Machine(read_size(ram) if ram else None, cpus, storage, workload)
    with choice.store() as store, working("looking"):
        found = examine(
            store,
            only or (("settings-*",) if how else ()),
            machine=machine,
            keeps_snapshot=snapshot,
        )
    if how:
        if text := written(found.findings, how):
            echo_line(text)
    elif as_json:
        echo_json(found.to_mapping())
    else:
        _echo(found)
    context.exit(0 if found.is_well else 1)


def _echo(found: Examination) -> None:
    from toolkit.cli.render import echo_line, echo_table

    echo_table(
        ("check", "status", "reason"),
        [(f.id, f.status, f.reason) for f in found.findings],
        cell=1_000,
    )
    for finding in found.findings:
        if not (finding.is_bad and (finding.fix or finding.objects)):
            continue
        echo_line(f"{finding.id}:")
        for thing in finding.objects[:_MOST_FIXES]:
            more = f" (of {thing.count:,})" if thing.count > len(thing.worst) else ""
            names = ", ".join(thing.worst)
            echo_line(f"  {thing.name}" + (f": {names}{more}" if names != thing.name else ""))
        for statement in finding.fix[:_MOST_FIXES]:
            end = "" if finding.id.startswith("redis-") else ";"
            echo_line(indent(statement + end, "    "))
        if len(finding.fix) > _MOST_FIXES:
            echo_line(f"    … and {len(finding.fix) - _MOST_FIXES:,} more: --json has them")
