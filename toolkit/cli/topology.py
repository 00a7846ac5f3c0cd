"""The commands `toolkit topology`: which servers there are, what each is, and how far behind."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from toolkit.cli.choice import Choice
from toolkit.cli.numbers import Seconds
from toolkit.cli.render import echo_json, echo_line, echo_table, shown, sized, table_of
from toolkit.config import Settings, hide_password
from toolkit.drivers import drive
from toolkit.errors import ConfigError
from toolkit.nodes import NodeReport, as_mapping, describe_nodes
from toolkit.opening import check_nodes, cluster_of

_NUMBERS = ("tli", "behind", "lag", "clock")
_HEADERS = ("node", "is", "version", "tli", "behind", "lag", "schema", "clock")
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
    if as_json:
        echo_json(rows)
    else:
        echo_table(list(rows[0]), [[str(v) for v in row.values()] for row in rows], cell=1_000)


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
        echo_json([as_mapping(r) for r in reports])
    else:
        echo_table(_HEADERS, _rows(reports), numbers=_NUMBERS)
        for line in _problems(reports):
            click.echo(line)
        for report in reports:
            for line in report.remarks:
                echo_line(f"{report.name}: note: {line}")
    context.exit(1 if any(r.problems for r in reports) else 0)


@topology.command()
@click.option(
    "--every", type=Seconds(0.1), default=1.0, show_default=True, help="Seconds between looks."
)
@_JSON
@click.pass_obj
def watch(choice: Choice, every: float, as_json: bool) -> None:
    """Go on showing what each node is and how far behind, until interrupted.

    In a pipe, a table for each look; with --json, a line.
    """
    settings = _settings(choice)
    console = Console()
    with cluster_of(settings) as cluster, ExitStack() as stack:
        if is_live := console.is_terminal and not as_json:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
        while True:
            reports = drive(describe_nodes(cluster, settings.schema))
            if as_json:
                click.echo(json.dumps([as_mapping(r) for r in reports]))
            elif is_live:
                table = table_of(_HEADERS, _rows(reports), numbers=_NUMBERS)
                live.update(Group(table, *map(Text, _problems(reports))), refresh=True)
            else:
                click.echo(shown(datetime.now(UTC)))
                echo_table(_HEADERS, _rows(reports), numbers=_NUMBERS)
                for line in _problems(reports):
                    click.echo(line)
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


def _rows(reports: list[NodeReport]) -> list[tuple[object, ...]]:
    return [
        (
            r.name,
            _role(r),
            r.version,
            r.timeline,
            sized(r.lag.bytes) if r.lag.bytes is not None else "unknown",
            f"{r.lag.seconds:.2f} s" if r.lag.seconds is not None else "unknown",
            r.revision,
            f"{r.skew_s:+.3f} s" if r.skew_s is not None else None,
        )
        for r in reports
    ]


def _role(report: NodeReport) -> str:
    if not report.is_up:
        return "down"
    is_other = report.role in ("primary", "replica") and report.role != report.declared
    return f"{report.role}, declared {report.declared}" if is_other else report.role


def _problems(reports: list[NodeReport]) -> list[str]:
    return [shown(f"{r.name}: {line}", 1_000) for r in reports for line in r.problems]
