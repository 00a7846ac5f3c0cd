"""The command line of the benchmarks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from toolkit.bench import memory, reads, report, writes
from toolkit.bench.ground import (
    SCHEMA,
    Ground,
    Sizes,
    drop_schema,
    local_servers,
    prepared,
)
from toolkit.bench.measure import Result
from toolkit.errors import ToolkitError
from toolkit.local import default_root

Case = Callable[[Ground], Result]

CASES: dict[str, Case] = {
    "read_small": reads.read_small,
    "client_cpu": reads.client_cpu,
    "read_large": reads.read_large,
    "read_hours": reads.read_hours,
    "read_behind_log": reads.read_behind_log,
    "write_insert": writes.insert,
    "write_upsert": writes.upsert_empty,
    "write_upsert_existing": writes.upsert_existing,
    "stream_memory": memory.stream_memory,
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(sorted(CASES)), help="Run just this case.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the results there as JSON; - is the standard output.",
)
@click.option("--full", "is_full", is_flag=True, help="Stream ten million rows, not two.")
@click.option("--dsn", help=f"Run on this database, in a schema {SCHEMA!r} that is dropped after.")
def main(only: Sequence[str], json_path: Path | None, is_full: bool, dsn: str | None) -> None:
    """Measure reads and writes against psycopg, pandas and ADBC, by turns in one run.

    Starts a PostgreSQL of its own and removes it afterwards. Takes some minutes and 2 GB.
    """
    console, progress = Console(), Console(stderr=True)
    started = time.perf_counter()
    try:
        with progress.status("starting") as shown:
            results, server = run(dsn, list(only) or list(CASES), Sizes(), is_full, shown.update)
    except ToolkitError as error:
        progress.print(f"[red]bench:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    is_piped = json_path is not None and str(json_path) == "-"
    (progress if is_piped else console).print(report.table(results))
    progress.print(f"took {time.perf_counter() - started:.0f} s")
    if json_path is not None:
        text = json.dumps(report.to_mapping(results, server), indent=2)
        click.echo(text) if is_piped else json_path.write_text(f"{text}\n", encoding="utf-8")


def run(
    dsn: str | None, names: Sequence[str], sizes: Sizes, is_full: bool, say: Callable[[str], None]
) -> tuple[list[Result], str]:
    """Run cases on a database, or on a server of our own; return results and server version."""
    place: AbstractContextManager[str]
    place = local_servers(default_root(os.environ), say) if dsn is None else nullcontext(dsn)
    schema = "toolkit" if dsn is None else SCHEMA
    with place as address:
        try:
            with prepared(address, schema, sizes, say, is_full=is_full) as ground:
                return measure(ground, names, say), server_version(ground)
        finally:
            if dsn is not None:
                drop_schema(dsn, schema)


def measure(ground: Ground, names: Sequence[str], say: Callable[[str], None]) -> list[Result]:
    """Run the named cases, in their own order."""
    results = []
    for name, case in CASES.items():
        if name in names:
            say(f"measuring {name}")
            results.append(case(ground))
    return results


def server_version(ground: Ground) -> str:
    """Return the server's version as it says it itself."""
    return ground.peers.psycopg.info.parameter_status("server_version") or "unknown"
