"""The commands that change what is stored: `load`, `delete` and `refresh`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.choice import Choice, dataset_of
from toolkit.cli.failing import INTERRUPTED, Failure
from toolkit.cli.running import run_by_hand, seconds_of
from toolkit.errors import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from toolkit.backfill import BackfillReport
    from toolkit.cli.loading.check import Found, Source
    from toolkit.cli.loading.pieces import File
    from toolkit.intake import WriteReport
    from toolkit.store import Store


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--dataset", required=True, help="Where the rows go.")
@click.option("--series", help="The series of all rows. Default: the file's column series.")
@click.option("--tz", help="Zone of times without an offset, for instance UTC.")
@click.option(
    "--time-unit",
    type=click.Choice(["s", "ms", "us", "ns"]),
    help="What times that are integers count since 1970.",
)
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="COLUMN=FILECOLUMN",
    help="The dataset's COLUMN is called FILECOLUMN in the file; -FILECOLUMN leaves one out. "
    "Give it once for each column.",
)
@click.option("--ignore-extra", is_flag=True, help="Leave out every column the dataset lacks.")
@click.option(
    "--mode",
    type=click.Choice(["upsert", "insert", "ignore"]),
    default="upsert",
    show_default=True,
    help="Where a point exists: replace it, fail, or keep it.",
)
@click.option(
    "--compressed",
    is_flag=True,
    help="Store the rows as compressed blocks: for history that is not written to any more.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["csv", "parquet", "feather"]),
    help="Default: by the file's ending (.csv, .tsv, .csv.gz, .parquet, .feather, .arrow).",
)
@click.option("--delimiter", help="What separates the fields of a CSV. Default: a comma.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything and say what is new; store nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def load(
    choice: Choice,
    /,
    files: tuple[Path, ...],
    dataset: str,
    mode: str,
    compressed: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Load CSV, Parquet or Feather files into a dataset.

    All files are read through and checked, to the last row, before the first row is stored; an
    error says the line. They are then stored in pieces of about 250,000 rows, each in a
    transaction of its own: where that is broken off, run the same command again. With
    --compressed each span of some thousand points of a series is a transaction.

    A column that is not called ts is taken as ts if it alone is called timestamp, time, date or
    datetime. In CSV an empty field is NULL, and so are NaN, NA, null and None in a number.
    """
    from toolkit.cli.render import bars

    with choice.store() as store:
        sources = _open_sources(store, files, dataset, options)
        with bars() as progress:
            from toolkit.cli.loading.check import check

            found, only = check(
                sources, store.settings.plausible, _Bars(progress, "checking", sources)
            )
            load = _Load(sources, found, only, mode)
            put = load.compress if compressed else load.store
            report = None if dry_run else put(store, progress)
        if report is None:
            _show_found(store, dataset, found, as_json)
        else:
            _show_report(report, found, as_json)


def _open_sources(
    store: Store, files: Sequence[Path], dataset: str, options: dict[str, Any]
) -> list[Source]:
    from toolkit.cli.loading.check import Clock, open_source
    from toolkit.cli.loading.fitting import read_wish
    from toolkit.cli.render import note
    from toolkit.timegrid import zone

    declared = dataset_of(store, dataset)
    wish = read_wish(
        options["maps"], ignores_extra=options["ignore_extra"], series=options["series"]
    )
    if options["tz"] is not None:
        zone(options["tz"])
    clock = Clock(options["tz"], options["time_unit"])
    delimiter = {"\\t": "\t", "tab": "\t"}.get(options["delimiter"], options["delimiter"])
    if delimiter is not None and len(delimiter) != 1:
        raise click.UsageError(f"--delimiter {delimiter!r} is not one character")
    sources = [
        open_source(path, declared, wish, clock, format=options["format_"], delimiter=delimiter)
        for path in files
    ]
    for source in sources:
        for said in source.fit.notes:
            note(f"{source.file.path}: {said}")
    return sources


class _Bars:
    """A bar for each file, made when the file is begun."""

    def __init__(self, progress: Progress, act: str, sources: Sequence[Source]) -> None:
        self._progress = progress
        self._tasks = {
            id(s.file): progress.add_task(
                f"{act} {s.file.path.name[:40]}", total=s.file.size, start=False, said=""
            )
            for s in sources
        }

    def __call__(self, file: File, read: int) -> None:
        task = self._tasks[id(file)]
        self._progress.start_task(task)
        self._progress.update(task, completed=read)


@dataclass(slots=True)
class _Load:
    """Files that were checked on their way into a store; ``only`` is the frame if there is one."""

    sources: Sequence[Source]
    found: Found
    only: Any
    mode: str
    stored: int = 0

    def store(self, store: Store, progress: Progress) -> WriteReport:
        """Store the pieces as rows, each in a transaction."""
        from toolkit.intake import WriteReport

        if not self.found.rows:
            return WriteReport()
        try:
            return store.write(
                self.sources[0].dataset.name,
                self._frames(progress),
                mode=self.mode,
                on_chunk=self._hear,
                **self._options(),
            )
        except KeyboardInterrupt:
            if not self.stored:
                raise Failure("interrupted; nothing was stored", INTERRUPTED) from None
            raise Failure(
                f"interrupted; the first {self.stored:,} of {self.found.rows:,} rows are stored, "
                "nothing of the rest; with --mode upsert or ignore the same command can be run "
                "again",
                INTERRUPTED,
            ) from None

    def compress(self, store: Store, progress: Progress) -> BackfillReport:
        """Store the pieces as blocks, each span of a series in a transaction."""
        from toolkit.backfill import BackfillReport

        if not self.found.rows:
            return BackfillReport()
        policies = {"upsert": "replace", "insert": "fail", "ignore": "keep"}
        try:
            return store.backfill(
                self.sources[0].dataset.name,
                self._frames(progress),
                policy=policies[self.mode],
                on_chunk=self._hear,
                **self._options(),
            )
        except KeyboardInterrupt:
            raise Failure(
                f"interrupted; the first {self.stored:,} of {self.found.rows:,} rows are stored, "
                "and perhaps some of the next; with --mode upsert or ignore the same command "
                "can be run again",
                INTERRUPTED,
            ) from None

    def _options(self) -> dict[str, Any]:
        first = self.sources[0]
        return {"series": first.series, "tz": first.clock.tz, "time_unit": first.clock.unit}

    def _hear(self, report: WriteReport | BackfillReport) -> None:
        self.stored = report.received

    def _frames(self, progress: Progress) -> Any:
        return self.only if self.only is not None else self._pieces(progress)

    def _pieces(self, progress: Progress) -> Iterator[Any]:
        on_read = _Bars(progress, "storing", self.sources)
        for source in self.sources:
            for _, frame in source.frames(on_read):
                yield frame


def _show_found(store: Store, dataset: str, found: Found, as_json: bool) -> None:
    """Say what a load would store, and what of it is new."""
    from toolkit.cli.render import echo_json, echo_table
    from toolkit.timegrid import iso

    there = {s.name for s in store.series(dataset)}
    new_series = sorted(set(found.series) - there)
    starts = {p.span.start for p in store.partitions(dataset)}
    shown = {
        "dry_run": True,
        "rows": found.rows,
        "series": dict(sorted(found.series.items())),
        "start": iso(found.span.start) if found.span else None,
        "last": iso(found.span.end - 1) if found.span else None,
        "new_series": new_series,
        "new_partitions": [iso(s) for s in sorted(found.partitions - starts)],
    }
    if as_json:
        echo_json(shown)
        return
    names = list(shown["series"])[:20]  # type: ignore[call-overload]  # a dict, see above
    rows = [(n, found.series[n], "new" if n not in there else "") for n in names]
    echo_table(("series", "rows", ""), rows, numbers=["rows"])
    click.echo(
        f"{counted(found.rows, 'rows')} of {len(found.series):,} series ({len(new_series):,} new), "
        f"{shown['start']} to {shown['last']}, "
        f"{counted(len(found.partitions - starts), 'new partitions')}; checked, nothing stored"
    )


def _show_report(report: WriteReport | BackfillReport, found: Found, as_json: bool) -> None:
    from toolkit.backfill import BackfillReport
    from toolkit.cli.render import echo_json

    if as_json:
        echo_json({"dry_run": False, "series": len(found.series), "report": report})
        return
    counts = [("inserted", report.inserted), ("updated", report.updated)]
    counts += [("unchanged", report.unchanged), *report.rejected.items()]
    said = ", ".join(f"{count:,} {what}" for what, count in counts if count) or "nothing to store"
    if isinstance(report, BackfillReport) and report.blocks:
        said += f"; {counted(report.blocks, 'blocks')} of {report.block_bytes:,} bytes"
    click.echo(
        f"{counted(report.received, 'rows')} of {len(found.series):,} series: {said}; "
        f"{report.seconds:.1f} s"
    )


@click.command()
@click.argument("dataset")
@click.argument("series", nargs=-1, required=True, metavar="SERIES...")
@click.argument("start")
@click.argument("end")
@click.option("--tz", default="UTC", show_default=True, help="Zone of times without an offset.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def delete(
    choice: Choice,
    dataset: str,
    series: tuple[str, ...],
    start: str,
    end: str,
    tz: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete the points of series between two times.

    Says how many there are, and asks. END is not included. Rollups follow at the next refresh;
    answers are right at once.
    """
    from toolkit.cli.moments import read_time
    from toolkit.cli.render import confirmed, echo_json, working

    now, names = datetime.now(UTC), list(dict.fromkeys(series))
    span = [read_time(t, tz, now=now, what=w) for t, w in ((start, "START"), (end, "END"))]
    with choice.store() as store:
        count = None
        if dry_run or not yes:
            with working("counting"):
                column = dataset_of(store, dataset).columns[0].name
                pieces = store.stream(dataset, names, span[0], span[1], columns=[column])
                count = sum(map(len, pieces))
        if count and not dry_run:
            confirmed(f"Delete {counted(count, 'points')} of {len(names)} series?", is_sure=yes)
        if not dry_run and count != 0:
            with working("deleting"):
                count = store.delete(dataset, names, span[0], span[1])
    if as_json:
        echo_json({"dry_run": dry_run, "points": count})
    else:
        click.echo(f"{counted(count or 0, 'points')} {'would be ' if dry_run else ''}deleted")


@click.command()
@click.argument("datasets", nargs=-1, metavar="[DATASET]...")
@click.option(
    "--audit",
    is_flag=True,
    help="Count all rollups anew from points and blocks, say which buckets are not as stored, "
    "and repair them.",
)
@click.option("--dry-run", is_flag=True, help="Say what there is to do, and by which statements.")
@click.option(
    "--max-runtime",
    callback=seconds_of,
    metavar="TIME",
    help="Stop after so long, for instance 10m.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def refresh(
    context: click.Context,
    datasets: tuple[str, ...],
    audit: bool,
    dry_run: bool,
    max_runtime: float | None,
    as_json: bool,
) -> None:
    """Bring the rollups up to now.

    Of all datasets, or of those named; one that fails does not keep the others from it. Answers
    are right without it, only slower. What it has no time for is left to the next run.
    """
    run_by_hand(
        context,
        "audit" if audit else "refresh",
        datasets,
        is_dry=dry_run,
        max_runtime=max_runtime,
        as_json=as_json,
    )
