"""The command `toolkit doctor`: what is wrong with database and servers, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice

if TYPE_CHECKING:
    from toolkit_maintenance.doctor import Examination, Finding, Machine

_MOST_FIXES = 5  # a check; --json has them all
_INDENT = 9  # as wide as the longest status, and two
_THEN = " " * _INDENT


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
@click.option("--all", "shows_all", is_flag=True, help="Show what is ok, too, as --only does.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, of all checks.")
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
    shows_all: bool,
    as_json: bool,
) -> None:
    """Check the database and its servers, and say what mends them.

    Changes nothing. The worst comes first, and what is ok is only counted. What cannot be judged
    is unknown, and says why. Advice on settings goes by the machine: described by --ram, --cpus
    and --storage, or looked at where the server is on this one. Exits 1 if anything is found.
    """
    from toolkit.cli.render import echo_json, working
    from toolkit_maintenance.doctor import Machine, examine
    from toolkit_maintenance.doctor.machine import read_size

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
        _echo_advice(found, how)
    elif as_json:
        echo_json(found.to_mapping())
    else:
        _echo(found, shows_all=shows_all or bool(only))
    context.exit(0 if found.is_well else 1)


def _echo_advice(found: Examination, how: str) -> None:
    from toolkit.cli.render import echo_line, echo_words
    from toolkit_maintenance.doctor.settings import remarks, written

    if text := written(found.findings, how):
        echo_line(text)
    for said in remarks(found.findings, how):
        echo_words(said, err=True)


def _echo(found: Examination, *, shows_all: bool) -> None:
    from toolkit.errors import counted
    from toolkit_maintenance.doctor.finding import CRIT, OK, UNKNOWN, WARN

    shown = (CRIT, WARN, UNKNOWN, *((OK,) if shows_all else ()))
    for finding in sorted(found.findings, key=lambda f: (CRIT, WARN, UNKNOWN, OK).index(f.status)):
        if finding.status in shown:
            _echo_finding(finding)
    _echo_administrators(found.findings)
    count = sum(f.status == OK for f in found.findings)
    if count and not shows_all:
        click.echo(f"{counted(count, 'checks', 'are')} ok (--all)")


def _echo_finding(finding: Finding) -> None:
    from toolkit.cli.render import echo_line, echo_words
    from toolkit_maintenance.doctor.finding import sets_up_server

    echo_words(f"{finding.id}: {finding.reason}", first=f"{finding.status:<{_INDENT}}", then=_THEN)
    if not finding.is_bad:
        return
    for thing in finding.objects[:_MOST_FIXES]:
        more = f" (of {thing.count:,})" if thing.count > len(thing.worst) else ""
        names = ", ".join(thing.worst)
        said = thing.name + (f": {names}{more}" if names != thing.name else "")
        echo_words(said, first=f"{_THEN}  ", then=f"{_THEN}    ")
    fixes = [s for s in finding.fix if not sets_up_server(s)]
    for statement in fixes[:_MOST_FIXES]:
        end = "" if finding.id.startswith("redis-") else ";"
        echo_line(indent(statement + end, f"{_THEN}    "))
    if len(fixes) > _MOST_FIXES:
        echo_line(f"{_THEN}    … and {len(fixes) - _MOST_FIXES:,} more: --json has them")


def _echo_administrators(findings: Sequence[Finding]) -> None:
    from toolkit.cli.render import echo_line, echo_words
    from toolkit_maintenance.doctor.finding import for_administrator

    statements = for_administrator(findings)
    if not statements:
        return
    has_settings = any(s.startswith("ALTER SYSTEM") for s in statements)
    managed = " (of a managed server in its parameters: --as provider)" if has_settings else ""
    echo_words(f"as an administrator{managed}:")
    for statement in statements:
        echo_line(f"    {statement};")
    restarts = [f.evidence["setting"] for f in findings if f.evidence.get("needs_restart")]
    if restarts:
        said = f"after a restart of the server: {', '.join(restarts)}"
        echo_words(said, first="  ", then="    ")
