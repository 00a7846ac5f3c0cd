"""The command `roles`: who is reader, writer or maintainer, and the GRANTs that make one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.choice import Choice

if TYPE_CHECKING:
    from toolkit.drivers.direct import Direct
    from toolkit.roles import Ground

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _named(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name roles."""
    for role, says in (
        (
            "maintainer",
            "refreshes, compresses and runs the jobs: a member of the owner",
        ),
        ("writer", "writes, deletes and labels, and reads"),
        ("reader", "reads"),
    ):
        command = click.option(
            f"--{role}", multiple=True, metavar="ROLE", help=f"A role that {says}. Repeatable."
        )(command)
    return command


@contextmanager
def looking(choice: Choice) -> Iterator[tuple[Direct, Ground, str]]:
    """Yield a session, what may be granted there, and who asks; no right is needed for it."""
    from toolkit.drivers.direct import Direct
    from toolkit.granting import find_ground
    from toolkit.opening import primary_of

    settings = choice.resolved()
    with Direct(primary_of(settings), settings.pool) as direct:
        yield direct, *find_ground(direct, settings.schema)


@click.group()
def roles() -> None:
    """Show who may read, write and maintain, and grant it."""


@roles.command()
@_json
@click.pass_obj
def show(choice: Choice, as_json: bool) -> None:
    """Show which roles may use the schema.

    Which of reader, writer and maintainer each is wholly, and how many rights it lacks to be what
    it seems to be. Superusers are left out.
    """
    from toolkit.cli.render import echo_json, echo_table
    from toolkit.granting import standings

    with looking(choice) as (direct, ground, _):
        found = standings(direct, ground)
    rows = [(s.name, ", ".join(s.roles), s.seems, len(s.lacks[s.seems])) for s in found]
    if as_json:
        said = [
            {"role": s.name, "is": s.roles, "seems": s.seems, "lacks": map_lacks(s.lacks)}
            for s in found
        ]
        echo_json({"schema": ground.schema, "owner": ground.owner, "roles": said})
        return
    echo_table(("role", "is", "seems to be", "lacks"), rows, numbers=("lacks",))
    click.echo(f"schema {ground.schema!r} belongs to {ground.owner!r}")


def map_lacks(lacks: Any) -> dict[str, list[str]]:
    """Return what a role lacks as JSON has it."""
    return {role: [str(right) for right in rights] for role, rights in lacks.items()}


@roles.command("sql")
@_named
@_json
@click.pass_obj
def sql(
    choice: Choice,
    reader: tuple[str, ...],
    writer: tuple[str, ...],
    maintainer: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the GRANTs that make roles what they are to be.

    All of them, whether they are there or not; the roles need not exist yet.
    """
    from toolkit.cli.render import echo_json
    from toolkit.roles import grants, rights

    given = _given(reader, writer, maintainer)
    with looking(choice) as (_, ground, _asking):
        needed, advised = [], []
        for name, role in given.items():
            wanted = rights(role, ground)
            needed += grants([r for r in wanted if not r.rule.advised], ground, name)
            advised += grants([r for r in wanted if r.rule.advised], ground, name)
    if as_json:
        echo_json({"schema": ground.schema, "statements": needed, "advised": advised})
        return
    for statement in needed:
        click.echo(f"{statement};")
    for statement in advised:
        click.echo(f"{statement};  -- advised: nothing fails without")


@roles.command()
@_named
@_json
@click.pass_obj
def apply(
    choice: Choice,
    reader: tuple[str, ...],
    writer: tuple[str, ...],
    maintainer: tuple[str, ...],
    as_json: bool,
) -> None:
    """Give roles the rights they lack to be what they are to be.

    All or none. Once more does nothing; after a new dataset it gives what that needs. Nothing is
    taken from anybody.
    """
    from toolkit import granting
    from toolkit.cli.render import echo_json, note

    given = _given(reader, writer, maintainer)
    with looking(choice) as (direct, ground, _):
        done = granting.apply(direct, ground, given)
    if as_json:
        echo_json({"schema": ground.schema, "statements": done})
        return
    for statement in done:
        click.echo(f"{statement};")
    if not done:
        note("nothing was lacking")


def _given(
    reader: tuple[str, ...], writer: tuple[str, ...], maintainer: tuple[str, ...]
) -> dict[str, str]:
    from toolkit.roles import MAINTAINER, READER, WRITER

    named = ((READER, reader), (WRITER, writer), (MAINTAINER, maintainer))  # the most wins
    given = {name: role for role, names in named for name in names}
    if not given or "" in given:
        raise click.UsageError("name a role: --reader, --writer or --maintainer ROLE")
    return given
