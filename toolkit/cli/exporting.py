"""The command `export`: the way out of the database, into a Parquet file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice
from toolkit.cli.failing import INTERRUPTED, Failure
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.exporting import ExportReport


@click.command()
@click.argument("dataset")
@click.argument("series", nargs=-1)
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The Parquet file. It appears when all of it is written.",
)
@click.option("--from", "start", metavar="TIME", help="Only what is not earlier. Default: all.")
@click.option("--to", "end", metavar="TIME", help="Only what is earlier. Default: all.")
@click.option("--columns", multiple=True, metavar="A,B", help="Only these columns. Default: all.")
@click.option("--step", help="Bars of this length instead of points: 5m, 1h, 1d, …")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="Instead of names: all series that carry this label; several must all be carried.",
)
@click.option(
    "--tz",
    default="UTC",
    show_default=True,
    help="Zone of times typed without an offset, and of days and longer steps.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def export(
    choice: Choice,
    dataset: str,
    series: tuple[str, ...],
    out: Path,
    start: str | None,
    end: str | None,
    columns: tuple[str, ...],
    step: str | None,
    labels: tuple[str, ...],
    tz: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write points, or bars of a step, to a Parquet file.

    Of all series where none is named, over all of time. Takes some MB of memory however long
    it is. Exact to the last bit: `toolkit load` reads it back.

    \b
        toolkit export candles BTC-USD --from 2024-01-01 --to 2025-01-01 --out btc-2024.parquet
    """
    from toolkit.cli.conditions import read_labels, read_names
    from toolkit.cli.moments import read_time
    from toolkit.cli.render import echo_json, sized, working

    if str(out) == "-":
        raise click.UsageError("--out -: Parquet cannot be piped; name a file")
    now = datetime.now(UTC)
    low = None if start is None else read_time(start, tz, now=now, what="--from")
    high = None if end is None else read_time(end, tz, now=now, what="--to")
    with choice.store() as store, working(f"exporting {dataset}") as say:

        def hear(report: ExportReport) -> None:
            say(f"exporting {dataset}: {_counts(report)}, {sized(report.bytes)}")

        try:
            report = store.export(
                dataset,
                out,
                list(series) or None,
                low,
                high,
                labels=read_labels(labels),
                columns=read_names(columns),
                step=step,
                tz=tz,
                overwrite=overwrite,
                on_progress=hear,
            )
        except KeyboardInterrupt:
            raise Failure("interrupted; nothing was written", INTERRUPTED) from None
    if as_json:
        echo_json({"file": out, "report": report})
    else:
        click.echo(f"{_counts(report)} to {out}: {sized(report.bytes)}; {report.seconds:.1f} s")


def _counts(report: ExportReport) -> str:
    return f"{counted(report.rows, 'rows')} of {report.series:,} series"
