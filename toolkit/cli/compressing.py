"""The commands about blocks: `compress`, `recompress`, `decompress` and `verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.choice import Choice, dataset_of
from toolkit.cli.failing import BUSY, FAILED, INTERRUPTED, Failure
from toolkit.errors import QueryError, counted
from toolkit.timegrid import Step

if TYPE_CHECKING:
    from toolkit.partitions import Partition
    from toolkit.tally import PackReport
    from toolkit.verifier import VerifyReport

_OPTIONS = (
    click.argument("dataset"),
    click.argument("series", nargs=-1, metavar="[SERIES]..."),
    click.option("--from", "start", metavar="START", help="Only from then on."),
    click.option("--to", "end", metavar="END", help="Only before then."),
    click.option("--tz", default="UTC", show_default=True, help="Zone of times without an offset."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


def _range_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@_range_options
@click.option("--after", metavar="AGE", help="Instead of --to: what is older, for instance 30d.")
@click.option("--dry-run", is_flag=True, help="Say what it would save; change nothing.")
@click.option("--gently", is_flag=True, help="Slower, so that readers notice less.")
@click.pass_obj
def compress(
    choice: Choice,
    dataset: str,
    series: tuple[str, ...],
    start: str | None,
    end: str | None,
    after: str | None,
    tz: str,
    dry_run: bool,
    gently: bool,
    as_json: bool,
) -> None:
    """Move old points from rows to blocks.

    Of all series, or of those named; without --to and --after what is older than the dataset's
    compress_after. Answers stay what they are. Each span is a transaction: what was interrupted
    goes on with the next run. Exits 4 if all that was left was busy.
    """
    if end is not None and after is not None:
        raise click.UsageError("give --to or --after, not both")
    if after is not None:
        try:
            Step.parse(after)
        except QueryError as error:
            raise click.UsageError(f"--after: {error}") from None
    low, high = _times(tz, start=start, end=end if after is None else f"now-{after}")
    with choice.store() as store:
        names = list(series) or None
        with _bar("compressing", dataset) as hear:
            report = store.compress(
                dataset, names, low, high, dry_run=dry_run, gently=gently, on_progress=hear
            )
        nothing = ""
        if not report.spans and not as_json:
            age = dataset_of(store, dataset).compress_after
            (until,) = [high] if high is not None else _times(tz, end=f"now-{age}")
            assert until is not None
            nothing = _why_nothing(store.partitions(dataset), until)
    _show_packed(report, "compressed", as_json, nothing, is_dry=dry_run)


@click.command()
@_range_options
@click.pass_obj
def recompress(
    choice: Choice,
    dataset: str,
    series: tuple[str, ...],
    start: str | None,
    end: str | None,
    tz: str,
    as_json: bool,
) -> None:
    """Fold points that were written since into their blocks.

    Of all series, or of those named. Answers stay what they are. Exits 4 if all that was left
    was busy.
    """
    low, high = _times(tz, start=start, end=end)
    with choice.store() as store, _bar("recompressing", dataset) as hear:
        names = list(series) or None
        report = store.recompress(dataset, names, low, high, on_progress=hear)
    nothing = "nothing to recompress: no point was written there since it was compressed"
    _show_packed(report, "recompressed", as_json, nothing)


@click.command()
@_range_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what is in blocks; change nothing.")
@click.pass_obj
def decompress(
    choice: Choice,
    dataset: str,
    series: tuple[str, ...],
    start: str | None,
    end: str | None,
    tz: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make rows of blocks again.

    Of all series, or of those named; of every block that reaches into the range. Says how many
    points these blocks hold, and asks: as rows they take some twenty times the space.
    """
    from toolkit.cli.render import confirmed, sized

    low, high = _times(tz, start=start, end=end)
    names = list(series) or None
    with choice.store() as store:
        report = store.decompress(dataset, names, low, high, dry_run=True)
        if report.blocks and not dry_run:
            confirmed(
                f"Make rows of {counted(report.points, 'points')} of dataset {dataset!r} that "
                f"are in {counted(report.blocks, 'blocks')} of {sized(report.block_bytes)}?",
                is_sure=yes,
            )
            with _bar("decompressing", dataset) as hear:
                report = store.decompress(dataset, names, low, high, on_progress=hear)
    nothing = "nothing to decompress: there is no block there"
    _show_packed(report, "decompressed", as_json, nothing, is_dry=dry_run)


@click.command()
@_range_options
@click.pass_context
def verify(
    context: click.Context,
    dataset: str,
    series: tuple[str, ...],
    start: str | None,
    end: str | None,
    tz: str,
    as_json: bool,
) -> None:
    """Read every block, and say which are damaged.

    And what each can be made again from. Changes nothing. Exits 1 if one is damaged.
    """
    low, high = _times(tz, start=start, end=end)
    with context.obj.store() as store, _bar("verifying", dataset) as hear:
        report = store.verify(dataset, list(series) or None, low, high, on_progress=hear)
    _show_verified(report, as_json)
    context.exit(FAILED if report.damaged else 0)


_TYPED = {"start": "--from", "end": "--to"}


def _times(tz: str, **texts: str | None) -> list[datetime | None]:
    from toolkit.cli.moments import read_time

    now = datetime.now(UTC)
    return [
        None if text is None else read_time(text, tz, now=now, what=_TYPED[what])
        for what, text in texts.items()
    ]


@contextmanager
def _bar(act: str, dataset: str) -> Iterator[Callable[[Any, int], None]]:
    """Show how far it is; an interruption ends in a sentence on what was done by then."""
    from toolkit.cli.render import bars

    done: Any = None
    with bars() as progress:
        task = progress.add_task(f"{act} {dataset[:40]}", total=None, said="")

        def hear(report: Any, total: int) -> None:
            nonlocal done
            done = report
            count = report.blocks if act == "verifying" else report.points
            progress.update(task, completed=count, total=total)

        try:
            yield hear
        except KeyboardInterrupt:
            if act == "verifying" or done is None:
                raise Failure("interrupted; nothing was changed", INTERRUPTED) from None
            raise Failure(
                f"interrupted; {counted(done.points, 'points')} of {counted(done.spans, 'spans')} "
                "are done and stay so, nothing is half done; the same command goes on with the "
                "rest",
                INTERRUPTED,
            ) from None


def _why_nothing(partitions: Sequence[Partition], until: datetime) -> str:
    """Say why there is nothing to compress up to an instant, and what there is later."""
    from toolkit.timegrid import iso, to_us

    edge = to_us(until)
    packed = sum(p.block_points for p in partitions if p.span.start < edge)
    said = f"nothing to compress before {iso(edge)}: "
    said += f"{counted(packed, 'points', 'are')} in blocks" if packed else "there are no points"
    later = next((p for p in partitions if p.rows and p.span.end > edge), None)
    if later is not None:
        upto = iso(later.span.end)
        said += f"; the oldest rows, some {later.rows:,}, are in the partition that ends {upto}: "
        said += f"--to {upto} takes them"
    return said


def _show_packed(
    report: PackReport, done: str, as_json: bool, nothing: str, *, is_dry: bool = False
) -> None:
    from toolkit.cli.render import echo_json, echo_table, note, sized

    if as_json:
        echo_json({"dry_run": is_dry, "report": report})
    elif not report.spans:
        if not report.busy and not report.waiting:
            click.echo(nothing)
    else:
        rows: list[Sequence[object]] = [("points", report.points), ("spans", report.spans)]
        if report.blocks:
            rows.append(("blocks", report.blocks))
        is_back = done == "decompressed"
        before, after = ("rows now", "blocks then") if is_dry else ("rows given back", "blocks")
        if not is_back:
            rows.append((f"bytes of {before}", sized(report.row_bytes)))
        rows.append((f"bytes of {'blocks' if is_back else after}", sized(report.block_bytes)))
        if report.row_bytes and report.block_bytes:
            rows.append(("smaller by", f"{report.row_bytes / report.block_bytes:.1f} ×"))
        echo_table((report.dataset, ""), rows, numbers=[""])
        if not is_dry:
            click.echo(f"{counted(report.points, 'points')} {done} in {report.seconds:.1f} s")
        elif is_back:
            click.echo("nothing was changed")
        else:
            click.echo(
                f"expected from a sample: {report.sampled:,} of {report.points:,} points were "
                "encoded; the bytes of rows are those of their files, and the free space in them "
                "is among these; nothing was changed"
            )
    if report.busy and not report.spans:
        said = f"somebody else held {report.busy:,} of the spans, nothing was done; run it again"
        raise Failure(said, BUSY)
    if report.busy:
        note(f"somebody else held {report.busy:,} of the spans; run it again for the rest")
    if report.waiting and not is_dry:
        note(
            f"in {report.waiting:,} places (a series in a partition) rows wait for a rollup to "
            "follow their changes; run it again"
        )


def _show_verified(report: VerifyReport, as_json: bool) -> None:
    from toolkit.cli.render import echo_json, echo_line, sized
    from toolkit.timegrid import iso

    if as_json:
        damaged = [
            {
                "series": d.series,
                "start": iso(d.span.start),
                "end": iso(d.span.end),
                "problems": d.problems,
                "columns": d.columns,
                "late_rows": d.late_rows,
                "bars": d.bars,
                "is_readable": d.is_readable,
                "remedy": d.remedy,
            }
            for d in report.damaged
        ]
        figures = {n: getattr(report, n) for n in ("dataset", "blocks", "points", "bytes")}
        echo_json({**figures, "damaged": damaged, "seconds": report.seconds})
        return
    for d in report.damaged:
        echo_line(f"dataset {report.dataset!r}, series {d.series!r}, block {d.span}:")
        for problem in d.problems:
            echo_line(f"  {problem}")
        echo_line(f"  columns that decode: {', '.join(d.columns) or 'none'}")
        echo_line(f"  {d.remedy}")
    click.echo(
        f"{counted(report.blocks, 'blocks')} of {counted(report.points, 'points')}, "
        f"{sized(report.bytes)}: {len(report.damaged) or 'none'} damaged; {report.seconds:.1f} s"
    )
