"""The command ``toolkit``: a group whose commands are loaded when they are asked for."""

from __future__ import annotations

import io
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from toolkit import __version__
from toolkit.cli.choice import Choice
from toolkit.cli.failing import failing

# name → (where it is, what `toolkit --help` says); a test holds the texts to the commands' own
COMMANDS = {
    "init": ("toolkit.cli.settings:init", "Write a commented toolkit.toml."),
    "config": ("toolkit.cli.settings:config", "Show the settings, and where each comes from."),
    "up": (
        "toolkit.cli.servers:up",
        "Start the local PostgreSQL and Valkey, making them the first time.",
    ),
    "down": ("toolkit.cli.servers:down", "Stop the local servers; their data stays."),
    "status": ("toolkit.cli.servers:status", "Show what runs, and where."),
    "reset": ("toolkit.cli.servers:reset", "Stop the local servers and delete their data."),
    "pgbouncer": (
        "toolkit.cli.pgbouncer:pgbouncer",
        "Write PgBouncer's files from the topology, and use its console.",
    ),
    "topology": (
        "toolkit.cli.topology:topology",
        "Show the servers of the configuration's [[shards]], and what each is.",
    ),
    "migrate": (
        "toolkit.cli.schema:migrate",
        "Bring the database's schema up or down, and say where it is.",
    ),
    "datasets": (
        "toolkit.cli.schema:datasets",
        "List the datasets, show or change one, or propose one for a file.",
    ),
    "series": ("toolkit.cli.reading:series", "List the series of a dataset."),
    "label": ("toolkit.cli.reading:label", "Give a series labels, or take some away."),
    "load": ("toolkit.cli.writing:load", "Load CSV, Parquet or Feather files into a dataset."),
    "query": ("toolkit.cli.reading:query", "Read points, or bars of a step, between two times."),
    "explain": (
        "toolkit.cli.reading:explain",
        "Say how a query would be answered, without answering it.",
    ),
    "latest": ("toolkit.cli.reading:latest", "Show the newest points, or bars, of each series."),
    "export": (
        "toolkit.cli.exporting:export",
        "Write points, or bars of a step, to a Parquet file.",
    ),
    "delete": ("toolkit.cli.writing:delete", "Delete the points of series between two times."),
    "refresh": ("toolkit.cli.writing:refresh", "Bring the rollups up to now."),
    "compress": (
        "toolkit.cli.compressing:compress",
        "Move old points from rows to blocks.",
    ),
    "recompress": (
        "toolkit.cli.compressing:recompress",
        "Fold points that were written since into their blocks.",
    ),
    "decompress": (
        "toolkit.cli.compressing:decompress",
        "Make rows of blocks again.",
    ),
    "verify": (
        "toolkit.cli.compressing:verify",
        "Read every block, and say which are damaged.",
    ),
    "stats": (
        "toolkit.cli.settings:stats",
        "Show how large the datasets are, and what is unfollowed.",
    ),
    "vacuum": (
        "toolkit.cli.tending:vacuum",
        "Vacuum, freeze and analyze the tables that need it.",
    ),
    "reindex": (
        "toolkit.cli.tending:reindex",
        "Make the indexes anew that are much larger than they need to be.",
    ),
    "cache": (
        "toolkit.cli.cache:cache",
        "Show what processes share in Redis, or drop it.",
    ),
    "maintain": ("toolkit.cli.maintaining:maintain", "Run the maintenance jobs that are due."),
    "jobs": (
        "toolkit.cli.maintaining:jobs",
        "Show when each job ran, how it ended, and when it is due.",
    ),
    "calibrate": (
        "toolkit.cli.calibrate:calibrate",
        "Measure what reads cost on this server.",
    ),
    "roles": (
        "toolkit.cli.roles:roles",
        "Show who may read, write and maintain, and grant it.",
    ),
    "check": ("toolkit.cli.checking:check", "Check what the toolkit relies on."),
    "metrics": (
        "toolkit.cli.metrics:metrics",
        "Show what the server says: jobs, partitions, replicas, connections.",
    ),
    "doctor": (
        "toolkit.cli.doctor:doctor",
        "Check the database and its servers, and say what mends them.",
    ),
    "demo": (
        "toolkit.demo.tour:main",
        "Take the two-minute tour: real servers, real bars, charts.",
    ),
}
_TAKE_A_VALUE = ("--dsn", "--config", "--schema")


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, and no earlier."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoisted(args))

    def invoke(self, ctx: click.Context) -> Any:
        with failing(is_debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


def hoisted(args: list[str]) -> list[str]:
    """Move the global options to the front, so that they may stand anywhere.

    >>> hoisted(["query", "--dsn", "x", "candles", "--debug", "--", "--debug"])
    ['--dsn', 'x', '--debug', 'query', 'candles', '--', '--debug']
    """
    front: list[str] = []
    rest: list[str] = []
    left = iter(args)
    for word in left:
        if word == "--":
            rest += [word, *left]
        elif word == "--debug" or word.startswith(tuple(f"{o}=" for o in _TAKE_A_VALUE)):
            front.append(word)
        elif word in _TAKE_A_VALUE:
            front += [word, *([value] if (value := next(left, None)) is not None else [])]
        else:
            rest.append(word)
    return front + rest


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--dsn",
    metavar="CONNINFO",
    help="The database: postgresql://… or key=value words. Others see what you type: "
    "$TOOLKIT_DSN or the configuration file keep a password to yourself.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file. Default: $TOOLKIT_CONFIG, else ./toolkit.toml.",
)
@click.option("--schema", metavar="NAME", help="The toolkit's schema. Default: toolkit.")
@click.option("--debug", is_flag=True, help="Show tracebacks, and what the library logs.")
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(
    context: click.Context, dsn: str | None, config: Path | None, schema: str | None, debug: bool
) -> None:
    """Time series on plain PostgreSQL.

    Settings come from these options, then the environment (TOOLKIT_DSN, TOOLKIT_SCHEMA,
    TOOLKIT_POOL_MAX_SIZE, …), then the configuration file. Where none names a database the
    local servers are used, and started if they are down. The options above may stand anywhere.

    Exit codes: 0 done; 1 failed, or found something; 2 usage; 3 unavailable; 4 busy;
    130 interrupted; 141 the reader of a pipe went away.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode gets escapes
            stream.reconfigure(errors="backslashreplace")
    context.obj = Choice(dsn, config, schema, debug)
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    if debug:
        for name in ("toolkit", "toolkit_maintenance", "alembic", "psycopg"):
            logging.getLogger(name).setLevel(logging.DEBUG)
