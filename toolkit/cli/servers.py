"""The commands `toolkit up`, `down`, `status` and `reset`: the local servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from toolkit.cli.render import confirmed, echo_line, echo_table
from toolkit.config import environment
from toolkit.local import MOST_REPLICAS, Endpoints, LocalServers, Status, default_root

DOWN = 3

_OPTIONS = (
    click.option(
        "--root",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder that holds the local servers. Default: $TOOLKIT_HOME, else "
        "~/.local/state/timeseries-toolkit (root: /var/lib/timeseries-toolkit).",
    ),
    click.option(
        "--name", default="default", show_default=True, help="Which instance; any number may run."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
)


def _instance_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _servers(root: Path | None, name: str, **options: Any) -> LocalServers:
    return LocalServers(root or default_root(environment()), name=name, **options)


@click.command()
@_instance_options
@click.option(
    "--pg-bin",
    type=click.Path(path_type=Path),
    help="Folder of a system PostgreSQL's programs, instead of the wheel's; kept until reset.",
)
@click.option(
    "--replicas",
    type=click.IntRange(0, MOST_REPLICAS),
    help="So many streaming replicas; 0 takes them away. Default: as before.",
)
@click.option(
    "--pgbouncer/--no-pgbouncer",
    default=None,
    help="A PgBouncer before all of them; the system's, else Debian's, unpacked. "
    "Default: as before.",
)
@click.option(
    "--sync/--no-sync",
    default=None,
    help="A commit waits until one replica has it. Default: as before.",
)
@click.option(
    "--rejoin",
    metavar="NODE",
    help="Make a replaced primary, or a replica that lost its way, follow the primary: what only "
    "it has is lost.",
)
@click.option("--show-passwords", is_flag=True, help="Print the addresses with their passwords.")
@click.option(
    "--topology",
    is_flag=True,
    help="Print the servers as a part of toolkit.toml, with their passwords, and nothing else.",
)
def up(
    root: Path | None,
    name: str,
    as_json: bool,
    pg_bin: Path | None,
    rejoin: str | None,
    show_passwords: bool,
    topology: bool,
    **wishes: Any,
) -> None:
    """Start the local PostgreSQL and Valkey, making them the first time.

    They listen on 127.0.0.1 only and run until `toolkit down`.
    """
    with Console(stderr=True).status("starting the local servers") as shown:
        servers = _servers(root, name, pg_bin=pg_bin, on_progress=shown.update)
        if rejoin is not None:
            servers.rejoin(rejoin)
        endpoints = servers.up(**wishes)
        status = servers.status()
    if topology:
        click.echo(endpoints.topology(), nl=False)
        return
    if not show_passwords:
        endpoints = endpoints.masked()
    if as_json:
        click.echo(_json(status, endpoints))
    else:
        _show(status)
        for label, url in endpoints.labelled().items():
            click.echo(f"{label:11} {url}")


@click.command()
@_instance_options
def down(root: Path | None, name: str, as_json: bool) -> None:
    """Stop the local servers; their data stays."""
    stopped = _servers(root, name).down()
    if as_json:
        click.echo(json.dumps({"stopped": stopped}))
    else:
        click.echo("stopped" if stopped else "nothing was running")


@click.command()
@_instance_options
@click.pass_context
def status(context: click.Context, root: Path | None, name: str, as_json: bool) -> None:
    """Show what runs, and where. Exits 3 if a server is down."""
    found = _servers(root, name).status()
    if as_json:
        click.echo(_json(found))
    else:
        _show(found)
    context.exit(0 if found.is_ready else DOWN)


@click.command()
@_instance_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(root: Path | None, name: str, as_json: bool, yes: bool) -> None:
    """Stop the local servers and delete their data."""
    servers = _servers(root, name)
    confirmed(f"Delete all data in {servers.layout.home}?", is_sure=yes)
    servers.reset()
    click.echo(json.dumps({"reset": True}) if as_json else "stopped, and the data is deleted")


def _show(status: Status) -> None:
    roles = ["role"] if status.others else []
    rows = [
        (
            f"{server.server} {server.node}" if roles and server.node else server.server,
            *([server.role] if roles else []),
            (server.stream or "ready") if server.is_ready else "starting" if server.pid else "down",
            server.version,
            f"127.0.0.1:{server.port}" if server.port else None,
            str(server.pid or ""),
        )
        for server in status.servers
    ]
    echo_table(("server", *roles, "state", "version", "address", "pid"), rows)
    echo_line(f"in {status.postgres.data.parent}")


def _json(status: Status, endpoints: Endpoints | None = None) -> str:
    shown = asdict(status) | {"is_ready": status.is_ready}
    if endpoints is not None:
        shown["endpoints"] = asdict(endpoints)
    return json.dumps(shown, default=str, indent=2)
