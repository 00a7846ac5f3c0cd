"""The demo from start to end: servers, schema, bars, reads, chart, and what to type next."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from toolkit import migrate
from toolkit.aio import AsyncStore
from toolkit.columns import Columns
from toolkit.config import Settings, load_settings
from toolkit.demo import chart, reads
from toolkit.demo.bars import DailyBars, read_daily
from toolkit.demo.load import Loaded, load
from toolkit.errors import ToolkitError
from toolkit.local import LocalServers, default_root
from toolkit.store import Store
from toolkit.strategy import Plan

SINCE = "2006"
CHART = Path("demo-candles.png")
_LATEST = datetime(2012, 1, 1)  # a date, as click reads it
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Tour:
    """What a run of the demo did, for whoever started it from a program."""

    loaded: Loaded
    answers: tuple[reads.Answer, ...]
    all_agree: bool
    late_bar_was_seen: bool
    chart: Path


@click.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the local servers. Default: $TOOLKIT_HOME, else as `toolkit up` has it.",
)
@click.option(
    "--since",
    type=click.DateTime(["%Y", "%Y-%m-%d"]),
    default=SINCE,
    show_default=True,
    help="First year or day of the minute bars, up to 2012.",
)
@click.option(
    "--chart",
    "chart_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=CHART,
    show_default=True,
    help="Where the candlestick chart is saved.",
)
def main(root: Path | None, since: datetime, chart_path: Path) -> None:
    """Load real daily bars and millions of minute bars into local servers, and read them.

    Takes under a minute the first time and a few seconds from then on.
    """
    if since > _LATEST:
        raise click.BadParameter("the demo reads 2012: begin no later", param_hint="--since")
    # a pipe says 80 columns, too few for the table of reads
    console = Console(width=None if sys.stdout.isatty() else 140)
    started = time.perf_counter()
    try:
        chart.check_installed()
        daily = read_daily()
        settings = _serve(root or default_root(os.environ), console)
        tour = run(settings, daily, f"{since:%Y-%m-%d}", chart_path, console)
    except KeyboardInterrupt:
        console.print("\ninterrupted; run it again and it goes on from here")
        sys.exit(_INTERRUPTED)
    except ToolkitError as error:
        Console(stderr=True).print(f"[red]demo:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    console.print(_next(tour, time.perf_counter() - started), soft_wrap=True)


def run(
    settings: Settings, daily: Mapping[str, DailyBars], since: str, path: Path, console: Console
) -> Tour:
    """Load what is missing, ask everything, print it, and save the chart."""
    with Store(settings) as store:
        loaded = load(store, daily, since, console)
        console.print(_loaded(loaded))
        answers = _ask(store, console)
        together = _ask_at_once(settings, list(daily), console)
        each_way, all_agree = _ask_each_way(store, console)
        was_seen = _correct_a_bar(store, console)
        _explain(store, console)
        _draw(store, path)
    return Tour(loaded, (*answers, *together, *each_way), all_agree, was_seen, path)


def _serve(root: Path, console: Console) -> Settings:
    with console.status("starting PostgreSQL and Valkey") as shown:
        servers = LocalServers(root, on_progress=shown.update)
        endpoints = servers.up()
        settings = replace(load_settings(endpoints.dsn).without_cache(), dsn=endpoints.dsn)
        if not migrate.status(endpoints.dsn, schema=settings.schema).is_current:
            shown.update("migrating")
            migrate.upgrade(endpoints.dsn, schema=settings.schema)
        status = servers.status()
    for server in (status.postgres, status.valkey):
        console.print(f"{server.server} {server.version} on 127.0.0.1:{server.port}")
    return settings


def _loaded(loaded: Loaded) -> str:
    if loaded.was_warm:
        return "the bars are there already\n"
    rate = loaded.rows / loaded.write_s
    return (
        f"stored {loaded.rows:,} bars in {loaded.write_s:.1f} s ({rate:,.0f} a second), "
        f"refreshed the rollups in {loaded.refresh_s:.1f} s\n"
    )


def _ask(store: Store, console: Console) -> list[reads.Answer]:
    with console.status("reading") as shown:
        done: list[reads.Answer] = []
        for number, ask in enumerate(reads.ASKS, 1):
            shown.update(f"reading {number} of {len(reads.ASKS)}: {ask.words}")
            done.append(reads.Answer.of(ask.words, reads.read(store, ask)))
        newest, ms = _latest(store)
    done.append(reads.Answer.of("the newest bar of every series", newest, ms))
    console.print(reads.table("Reads", done, "ms: the whole call in Python, best of three"))
    return done


def _latest(store: Store) -> tuple[Columns, float]:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        newest = store.latest(reads.DATASET)
        times.append((time.perf_counter() - started) * 1000)
    return newest, min(times)


def _ask_at_once(settings: Settings, tickers: list[str], console: Console) -> list[reads.Answer]:
    async def ask() -> tuple[list[reads.Answer], float]:
        async with AsyncStore(settings) as store:
            return await reads.ask_at_once(store, reads.at_once(tickers))

    answers, whole = asyncio.run(ask())
    title = f"The same store under asyncio: {len(answers)} reads at once, {whole:.1f} ms in all"
    console.print(reads.table(title, answers))
    return answers


def _ask_each_way(store: Store, console: Console) -> tuple[list[reads.Answer], bool]:
    answers, all_agree = reads.ask_each_way(store, reads.SAME)
    verdict = "all three gave the same bars" if all_agree else "[red]THE ANSWERS DIFFER[/]"
    console.print(reads.table("One question, each way", answers, verdict))
    return answers, all_agree


def _correct_a_bar(store: Store, console: Console) -> bool:
    """Change one minute, read the day from the rollup without a refresh, and put it back."""
    series, minute, day = "AAPL/1m", "2012-06-01T15:30Z", ("2012-06-01T00:00Z", "2012-06-02T00:00Z")
    old = store.read(reads.DATASET, series, minute, "2012-06-01T15:31Z")
    if not len(old):
        return False

    def high() -> tuple[float, str]:
        bars = store.read(reads.DATASET, series, *day, step="1h", strategy="downsampled")
        assert isinstance(bars.plan, Plan)
        touched = ", ".join(f"{n:,} {kind}" for kind, n in bars.plan.sources.items())
        return float(np.max(bars["high"])), touched

    before, _ = high()
    late = old.to_pandas()
    late["high"] = before + 1.0
    try:
        store.write(reads.DATASET, late)
        after, touched = high()
    finally:
        store.write(reads.DATASET, old)
    console.print(
        f"\nA late correction: {series} at {minute} gets a high of {before + 1.0:.2f}. The day "
        f"from the rollup, before any refresh, says {after:.2f} (it said {before:.2f}); "
        f"rows touched: {touched}. The bar is put back.\n"
    )
    return after == before + 1.0


def _explain(store: Store, console: Console) -> None:
    ask = reads.EXPLAINED
    explanation = store.explain(*ask.arguments, **ask.options)
    console.print(f"[bold]store.explain: {ask.words}[/]")
    for line in str(explanation).splitlines():
        console.print(Text(line, style="dim"), no_wrap=True, overflow="ellipsis")


def _draw(store: Store, path: Path) -> None:
    start, end = reads.YEAR
    bars = store.read(reads.DATASET, "AAPL/1m", start, end, step="1d", tz="America/New_York")
    title = "AAPL, 2012: New York days, read from one-minute bars"
    chart.save_candles(bars, title, path)


def _next(tour: Tour, seconds: float) -> str:
    command = _command()
    lines = (
        ("query candles AAPL/1m 2012-06-01 2012-06-08 --step 1h", "the same from the shell"),
        ("explain candles AAPL/1m 2012-01-01 2013-01-01 --step 1d", "why it was answered so"),
        ("latest candles", "the newest bar of every series"),
        ("status", "the servers; they run until they are told to stop"),
        ("down", "stops them; the bars stay"),
        ("--help", "everything else"),
    )
    width = max(len(line) for line, _ in lines)
    typed = "\n".join(f"  {command} {line:<{width}}  [dim]{why}[/]" for line, why in lines)
    code = (
        "import toolkit\n"
        "with toolkit.connect() as store:\n"
        '    bars = store.read("candles", "AAPL/1m", "2012-06-01T00:00Z", "2012-06-08T00:00Z",\n'
        '                      step="1h")\n'
        "    print(bars.to_pandas(), bars.plan)"
    )
    return (
        f"\nSaved {tour.chart}. The whole took {seconds:.1f} s.\n\n"
        f"[bold]What to type next[/]\n{typed}\n\nor in Python:\n\n{escape(code)}\n"
    )


def _command() -> str:
    """Return how the command is typed here: by its path where it is in a folder below this one."""
    place = Path(sys.executable).parent / "toolkit"
    here = Path.cwd()
    is_below = place.exists() and place.is_relative_to(here)
    return str(place.relative_to(here)) if is_below else "toolkit"
