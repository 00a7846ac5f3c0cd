"""The commands `toolkit pgbouncer`: its files from the topology, and its console."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import click

from toolkit.cli.choice import Choice
from toolkit.cli.failing import Failure
from toolkit.cli.numbers import Seconds
from toolkit.cli.render import echo_table
from toolkit.config import Settings
from toolkit.drivers.console import SHOWN, Console, console_of, read_facts
from toolkit.errors import ConfigError, ToolkitError, UnknownName
from toolkit.pgbouncer import Options, Rendered, merged, render, roles_of, version_of
from toolkit_routing import Node

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_CONSOLE = click.option(
    "--console",
    metavar="CONNINFO",
    help="PgBouncer's address. Default: console in [pgbouncer], else the primary's.",
)
_WAIT = click.option(
    "--wait",
    type=Seconds(0.1),
    default=10.0,
    show_default=True,
    help="Seconds to wait for its answer.",
)


@click.group()
def pgbouncer() -> None:
    """Write PgBouncer's files from the topology, and use its console."""


@pgbouncer.command("render")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write pgbouncer.ini and userlist.txt into this folder.",
)
@click.option("--node", "names", multiple=True, help="Only this node; may be given again.")
@click.option(
    "--pgbouncer-version",
    "version",
    default="1.24",
    show_default=True,
    help="Leave out what this version does not know.",
)
@click.option("--listen", default="127.0.0.1", show_default=True, help="Where clients may come.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=6432,
    show_default=True,
    help="And on which port.",
)
@click.option(
    "--clients",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    help="How many may be connected.",
)
@click.option("--admin", default="", help="Who may use the console. Default: the nodes' role.")
@click.option(
    "--force",
    is_flag=True,
    help="Overwrite a pgbouncer.ini that differs, and secrets that do. Other entries of "
    "userlist.txt stay anyway.",
)
@_JSON
@click.pass_obj
def render_files(
    choice: Choice,
    output: Path | None,
    names: tuple[str, ...],
    version: str,
    listen: str,
    port: int,
    clients: int,
    admin: str,
    force: bool,
    as_json: bool,
) -> None:
    """Print pgbouncer.ini for the nodes of the topology, or write it with userlist.txt.

    Each node is asked how many sessions it has; the roles' secrets are read where it lets us.
    """
    settings = choice.resolved(migrates=False)
    nodes = _nodes(settings, names)
    options = Options(
        version_of(version),
        listen,
        port,
        clients,
        admin,
        **_userlist_in(output),
        statement_timeout=settings.pool.statement_timeout,
    )
    roles = [*roles_of(nodes), *([admin] if admin else [])]
    facts = {
        n.name: read_facts(n.direct or n.conninfo, roles, settings.pool, n.name) for n in nodes
    }
    found = render(nodes, facts, options)
    if output is not None:
        _write(output, found, force)
    if as_json:
        shown = {"ini": found.ini, "sql": found.sql, "remarks": list(found.remarks)}
        click.echo(json.dumps(shown, indent=2))
        return
    if output is None:
        click.echo(found.ini)
    if found.sql:
        click.echo(found.sql)
    for remark in found.remarks:
        click.echo(f"note: {remark}", err=True)


@pgbouncer.command()
@click.argument("what", type=click.Choice(SHOWN), default="pools")
@_CONSOLE
@_WAIT
@_JSON
@click.pass_obj
def show(choice: Choice, what: str, console: str | None, wait: float, as_json: bool) -> None:
    """Show its pools, clients, servers, stats, databases or config."""
    rows = _console(choice, console, wait).show(what)
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    shown = [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    echo_table(names, shown, cell=1_000)


@pgbouncer.command()
@_CONSOLE
@_WAIT
@_JSON
@click.pass_obj
def reload(choice: Choice, console: str | None, wait: float, as_json: bool) -> None:
    """Let it read its files again."""
    to = _console(choice, console, wait)
    to.reload()
    _say(to, "reloaded", as_json)


@pgbouncer.command()
@click.argument("database", required=False)
@_CONSOLE
@_WAIT
@_JSON
@click.pass_obj
def pause(
    choice: Choice, database: str | None, console: str | None, wait: float, as_json: bool
) -> None:
    """Let transactions end, and clients wait: of all databases, or one."""
    to = _console(choice, console, wait)
    to.pause(database)
    _say(to, "paused", as_json)


@pgbouncer.command()
@click.argument("database", required=False)
@_CONSOLE
@_WAIT
@_JSON
@click.pass_obj
def resume(
    choice: Choice, database: str | None, console: str | None, wait: float, as_json: bool
) -> None:
    """Let the clients of a paused database, or of all, go on."""
    to = _console(choice, console, wait)
    to.resume(database)
    _say(to, "resumed", as_json)


@pgbouncer.command()
@click.argument("database", required=False)
@_CONSOLE
@_WAIT
@_JSON
@click.pass_obj
def reconnect(
    choice: Choice, database: str | None, console: str | None, wait: float, as_json: bool
) -> None:
    """Replace the servers' sessions, for instance after a migration."""
    to = _console(choice, console, wait)
    to.reconnect(database)
    _say(to, "reconnects", as_json)


def after_migration(settings: Settings) -> str:
    """Let PgBouncer replace its sessions, whose plans are old now; say what was done, or is to do.

    Nothing to say where no node is behind one.
    """
    console = _own_console(settings)
    if not console:
        if settings.console:
            return (
                "console in [pgbouncer] was left alone, as --dsn names another database; if it "
                "leads there, too: toolkit pgbouncer reconnect"
            )
        nodes = settings.topology.nodes if settings.topology else ()
        if not any(node.direct for node in nodes):
            return ""
        return "statements prepared through PgBouncer are old now: toolkit pgbouncer reconnect"
    try:
        to = Console(console)
        to.reconnect()
    except ToolkitError as error:
        return f"not reconnected, statements prepared through it may fail until it is: {error}"
    return f"{to.node} reconnects"


def _console(choice: Choice, console: str | None, wait: float) -> Console:
    if console is None:
        settings = choice.settings()
        console = _own_console(settings)
        if not console and settings.topology is not None:
            console = console_of(settings.topology.shards[0].primary.conninfo)
        elif not console and settings.dsn:
            console = console_of(settings.dsn)
    if not console:
        raise ConfigError(
            "pgbouncer", "console", "there is none; give --console, or console in [pgbouncer]"
        )
    return Console(console, wait)


def _own_console(settings: Settings) -> str:
    """Return the console of the settings' database: --dsn names another than the file's."""
    return "" if settings.origins.get("database.dsn") == "flag" else settings.console


def _nodes(settings: Settings, names: tuple[str, ...]) -> tuple[Node, ...]:
    if settings.topology is None:
        assert settings.dsn is not None
        nodes: tuple[Node, ...] = (Node("primary", settings.dsn),)
    else:
        nodes = settings.topology.nodes
    for name in names:
        if name not in {node.name for node in nodes}:
            raise UnknownName("node", name, [node.name for node in nodes])
    return tuple(node for node in nodes if not names or node.name in names)


def _userlist_in(output: Path | None) -> dict[str, str]:
    return {"userlist": str(output.resolve() / "userlist.txt")} if output is not None else {}


def _write(folder: Path, found: Rendered, force: bool) -> None:
    """Write the files; what is in the userlist already, such as a password, stays there."""
    folder.mkdir(parents=True, exist_ok=True)
    ini, users = folder / "pgbouncer.ini", folder / "userlist.txt"
    if ini.exists() and ini.read_text("utf-8") != found.ini and not force:
        raise Failure(f"{ini} exists and differs; nothing was written; --force overwrites it")
    old = users.read_text("utf-8") if users.exists() else ""
    text, differ = merged(old, found.userlist, replaces=force)
    _replace(users, text)
    _replace(ini, found.ini)
    for path in (ini, users):
        click.echo(f"wrote {path}", err=True)
    if old:
        click.echo(f"note: {users}: its entries were kept", err=True)
    for role in differ:
        done = "was replaced" if force else "was kept; --force takes the server's"
        click.echo(
            f"note: {users}: the secret of {role}, which is not the server's, {done}", err=True
        )


def _replace(path: Path, text: str) -> None:
    """Put a file in another's place, whole: its owner's, and readable to nobody else."""
    there = path.resolve()
    fresh = there.with_name(f".{there.name}.{os.getpid()}")
    # secrets are never readable to others, not even for a moment
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            with suppress(FileNotFoundError, PermissionError):  # PgBouncer is still to read it
                os.fchown(handle, there.stat().st_uid, there.stat().st_gid)
        fresh.replace(there)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _say(console: Console, done: str, as_json: bool) -> None:
    click.echo(json.dumps({"done": done}) if as_json else f"{console.node}: {done}")
