"""The commands `toolkit topology`: which servers there are, what each is, and how far behind."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from toolkit.cli.choice import Choice
from toolkit.config import Settings, hide_password
from toolkit.drivers import drive
from toolkit.errors import ConfigError
from toolkit.nodes import NodeReport, as_mapping, describe_nodes
from toolkit.opening import check_nodes, cluster_of

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def topology() -> None:
    """Show the servers of the configuration's [[shards]], and what each is."""


@topology.command()
@_JSON
@click.pass_obj
def show(choice: Choice, as_json: bool) -> None:
    """List the nodes as they are declared, without connecting."""
    settings = _settings(choice)
    assert settings.topology is not None
    table = Table("shard", "node", "declared", "address", "direct", "region", "weight")
    rows: list[dict[str, Any]] = []
    for shard in settings.topology.shards:
        for node in shard.nodes:
            rows.append(
                {
                    "shard": shard.name,
                    "node": node.name,
                    "declared": "primary" if node is shard.primary else "replica",
                    "address": hide_password(node.conninfo),
                    "direct": hide_password(node.direct) if node.direct else "",
                    "region": node.region,
                    "weight": node.weight,
                }
            )
            table.add_row(
                *(
                    f"{value:g}" if key == "weight" else str(value)
                    for key, value in rows[-1].items()
                )
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        Console().print(table)


@topology.command()
@_JSON
@click.pass_obj
@click.pass_context
def check(context: click.Context, choice: Choice, as_json: bool) -> None:
    """Look at every node: what it is, its lag, clock, schema and settings.

    Exits 1 if anything is wrong with one.
    """
    settings = _settings(choice)
    with cluster_of(settings) as cluster:
        reports = drive(describe_nodes(cluster, settings.schema))
    if as_json:
        click.echo(json.dumps([as_mapping(r) for r in reports], indent=2))
    else:
        Console().print(_table(reports))
        for report in reports:
            for line in report.problems:
                click.echo(f"{report.name}: {line}")
            for line in report.remarks:
                click.echo(f"{report.name}: note: {line}")
    context.exit(1 if any(r.problems for r in reports) else 0)


@topology.command()
@click.option("--every", type=float, default=1.0, show_default=True, help="Seconds between looks.")
@_JSON
@click.pass_obj
def watch(choice: Choice, every: float, as_json: bool) -> None:
    """Go on showing what each node is and how far behind, until interrupted.

    With --json, a line for each look.
    """
    settings = _settings(choice)
    with cluster_of(settings) as cluster:
        if as_json:
            while True:
                reports = drive(describe_nodes(cluster, settings.schema))
                click.echo(json.dumps([as_mapping(r) for r in reports]))
                time.sleep(every)
        with Live(console=Console(), auto_refresh=False) as live:
            while True:
                reports = drive(describe_nodes(cluster, settings.schema))
                lines = [f"{r.name}: {line}" for r in reports for line in r.problems]
                live.update(Group(_table(reports), *lines), refresh=True)
                time.sleep(every)


def _settings(choice: Choice) -> Settings:
    settings = choice.settings()
    if settings.topology is None:
        raise ConfigError(
            "topology",
            "shards",
            "there is none: the configuration names one database; give a toolkit.toml with "
            "[[shards]], or try it here: toolkit up --replicas 2",
        )
    check_nodes(settings)
    return settings


def _table(reports: list[NodeReport]) -> Table:
    table = Table(
        "node", "declared", "is", "up", "version", "timeline", "behind", "lag", "revision", "clock"
    )
    for r in reports:
        table.add_row(
            r.name,
            r.declared,
            r.role,
            "yes" if r.is_up else "no",
            r.version,
            str(r.timeline or ""),
            f"{r.lag.bytes:,} B" if r.lag.bytes is not None else "unknown",
            f"{r.lag.seconds:.2f} s" if r.lag.seconds is not None else "unknown",
            r.revision or "",
            f"{r.skew_s:+.3f} s" if r.skew_s is not None else "",
        )
    return table
