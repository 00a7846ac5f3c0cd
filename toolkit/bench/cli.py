"""The command line of the benchmarks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from toolkit.bench import (
    blocks,
    caching,
    grid,
    maintaining,
    memory,
    nodes,
    outages,
    packing,
    pooled,
    reads,
    report,
    shared,
    writes,
)
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
    "pgbouncer": pooled.pooled,
    "route": nodes.route,
    "session_read": nodes.session_read,
    "three_nodes": nodes.three_nodes,
    "cache_memory": caching.memory,
    "cache_memory_async": caching.memory_async,
    "cache_sliding": caching.sliding,
    "cache_mixed": caching.mixed,
    "cache_redis": shared.redis,
    "cache_redis_async": shared.redis_async,
    "cache_codec": shared.codec,
    **{outage.name: outage for outage in outages.OUTAGES},
    "grid": grid.grid,
    "write_insert": writes.insert,
    "write_upsert": writes.upsert_empty,
    "write_upsert_existing": writes.upsert_existing,
    "stream_memory": memory.stream_memory,
    "blocks_size": blocks.size,
    "blocks_size_generated": blocks.size_generated,
    "blocks_read": blocks.read,
    "blocks_columns": blocks.columns,
    "blocks_hours": blocks.hours,
    "blocks_short": blocks.short,
    "blocks_backfill": packing.backfill,
    "blocks_compress": packing.compress,
    "blocks_compress_load": packing.compress_under_load,
    "blocks_memory": memory.blocks_memory,
    "maintain_load": maintaining.maintain_load,
}


@dataclass(slots=True)
class Findings:
    """What a run has found so far."""

    results: list[Result] = field(default_factory=list)
    server: str = "unknown"


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
    """Measure reads, writes and the cache against their peers, by turns in one run.

    Starts a PostgreSQL and a Valkey of its own and removes them afterwards (with --dsn only the
    Valkey is used). Takes some minutes and 2 GB.
    """
    is_piped = json_path is not None and str(json_path) == "-"
    progress = Console(stderr=True)
    started = time.perf_counter()
    found = Findings()
    try:
        with progress.status("starting") as shown:
            run(dsn, only or list(CASES), Sizes(), found, shown.update, is_full=is_full)
    except ToolkitError as error:
        progress.print(f"[red]bench:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    finally:  # an error or an interrupt takes nothing away from the cases before it
        if found.results:
            wide = Console(width=None if sys.stdout.isatty() else 180)
            screen = progress if is_piped else wide
            screen.print(report.table(found.results))
            for line in (line for result in found.results for line in result.notes):
                screen.print(line, markup=False, highlight=False, soft_wrap=True)
    progress.print(f"took {time.perf_counter() - started:.0f} s")
    if json_path is not None:
        text = json.dumps(report.to_mapping(found.results, found.server), indent=2)
        click.echo(text) if is_piped else json_path.write_text(f"{text}\n", encoding="utf-8")


def run(
    dsn: str | None,
    names: Sequence[str],
    sizes: Sizes,
    found: Findings,
    say: Callable[[str], None],
    *,
    is_full: bool,
) -> None:
    """Run cases on a database, or on a server of our own, and add their results to ``found``."""
    schema = "toolkit" if dsn is None else SCHEMA
    with local_servers(default_root(os.environ), say) as own:
        addresses = (own.dsn if dsn is None else dsn, own.redis_url)
        try:
            with prepared(*addresses, schema, sizes, say, is_full=is_full) as ground:
                measure(ground, names, found, say)
        finally:
            if dsn is not None:
                drop_schema(dsn, schema)


def measure(
    ground: Ground, names: Sequence[str], found: Findings, say: Callable[[str], None]
) -> None:
    """Run the named cases, in their own order."""
    found.server = ground.peers.psycopg.info.parameter_status("server_version") or "unknown"
    for name, case in CASES.items():
        if name in names:
            say(f"measuring {name}")
            found.results.append(case(ground))
