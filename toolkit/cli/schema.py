"""The commands about the database's schema: `migrate` and `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice, dataset_of
from toolkit.cli.failing import FAILED
from toolkit.cli.numbers import Seconds

if TYPE_CHECKING:
    from toolkit.dataset import Dataset
    from toolkit.migrate import Status
    from toolkit.retaining import Retention

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_OF_BLOCKS = ("blocks", "block_points", "block_bytes")
_wait = click.option(
    "--wait",
    type=Seconds(),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for another migration to end.",
)


@click.group()
def migrate() -> None:
    """Bring the database's schema up or down, and say where it is."""


@migrate.command()
@click.argument("revision", default="head")
@_wait
@_json
@click.pass_obj
def up(choice: Choice, revision: str, wait: float, as_json: bool) -> None:
    """Apply the migrations that are missing.

    Up to REVISION; by default all.
    """
    from toolkit import migrate as migrations
    from toolkit.cli.pgbouncer import after_migration
    from toolkit.cli.render import working
    from toolkit.opening import primary_of

    settings = choice.resolved(migrates=False)
    with working("migrating") as say:
        status = migrations.upgrade(
            primary_of(settings),
            schema=settings.schema,
            revision=revision,
            deadline_s=wait,
            on_progress=say,
        )
    _show(status, settings.schema, as_json)
    if said := after_migration(settings):
        click.echo(said, err=True)


@migrate.command()
@click.argument("revision", default="-1")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_wait
@_json
@click.pass_obj
def down(choice: Choice, revision: str, yes: bool, wait: float, as_json: bool) -> None:
    """Take back migrations.

    Down to REVISION: one by default, all with `base`. What a migration made is dropped with
    all its data.
    """
    from toolkit import migrate as migrations
    from toolkit.cli.pgbouncer import after_migration
    from toolkit.cli.render import confirmed, working
    from toolkit.opening import primary_of

    settings = choice.resolved(migrates=False)
    primary = primary_of(settings)
    before = migrations.status(primary, schema=settings.schema)
    where = (
        f"from {before.current or 'nothing'} to {'one before' if revision == '-1' else revision}"
    )
    confirmed(
        f"Take schema {settings.schema!r} {where}? What those migrations made is dropped, "
        "with its data.",
        is_sure=yes,
    )
    with working("migrating") as say:
        status = migrations.downgrade(
            primary,
            schema=settings.schema,
            revision=revision,
            deadline_s=wait,
            on_progress=say,
        )
    _show(status, settings.schema, as_json)
    if said := after_migration(settings):
        click.echo(said, err=True)


@migrate.command()
@_json
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Say where the database is.

    Exits 1 if a migration is missing, or the database has one that is not known.
    """
    from toolkit import migrate as migrations
    from toolkit.opening import primary_of

    settings = context.obj.resolved(migrates=False)
    found = migrations.status(primary_of(settings), schema=settings.schema)
    _show(found, settings.schema, as_json)
    context.exit(0 if found.is_current else FAILED)


@migrate.command()
@_json
@click.pass_obj
def history(choice: Choice, as_json: bool) -> None:
    """List all migrations.

    Oldest first, and which of them the database has.
    """
    from toolkit import migrate as migrations
    from toolkit.cli.render import echo_json, echo_table
    from toolkit.opening import primary_of

    settings = choice.resolved(migrates=False)
    found = migrations.history(primary_of(settings), schema=settings.schema)
    if as_json:
        echo_json(found)
    else:
        echo_table(
            ("revision", "title", "applied"),
            [(r.id, r.title, r.is_applied) for r in found],
            cell=90,
        )


@migrate.command("sql")
@click.argument("revision", default="head")
@_json
@click.pass_obj
def sql(choice: Choice, revision: str, as_json: bool) -> None:
    """Print the SQL of the migrations.

    Needs no database. REVISION is the last one, or a range like 0001:0002.
    """
    from toolkit import migrate as migrations
    from toolkit.cli.render import echo_json

    text = migrations.sql(schema=choice.settings().schema, revision=revision)
    if as_json:
        echo_json({"revision": revision, "sql": text})
    else:
        click.echo(text, nl=False)


def _show(status: Status, schema: str, as_json: bool) -> None:
    from toolkit.cli.render import echo_json

    is_ahead = not status.is_current and not status.pending
    if as_json:
        echo_json(
            {
                "schema": schema,
                "current": status.current,
                "head": status.head,
                "is_current": status.is_current,
                "pending": status.pending,
            }
        )
        return
    at = f"schema {schema!r} is at {status.current or 'nothing'}"
    if status.is_current:
        click.echo(f"{at}, the newest")
    elif is_ahead:
        click.echo(f"{at}, which this version does not know (its newest is {status.head})")
    else:
        click.echo(f"{at}; missing: {', '.join(f'{r.id} ({r.title})' for r in status.pending)}")


@click.group(invoke_without_command=True)
@_json
@click.pass_context
def datasets(context: click.Context, as_json: bool) -> None:
    """List the datasets, show or change one, or propose one for a file."""
    if context.invoked_subcommand is not None:
        return
    from toolkit.cli.render import echo_json, echo_table

    with context.obj.store() as store:
        found = store.datasets()
    if as_json:
        echo_json([d.to_mapping() for d in found])
        return
    rows = [(d.name, ", ".join(d.names), ", ".join(d.ladder), d.partition) for d in found]
    echo_table(("dataset", "columns", "ladder", "partition"), rows, cell=120)


@datasets.command()
@click.argument("name")
@_json
@click.pass_obj
def show(choice: Choice, name: str, as_json: bool) -> None:
    """Show a dataset.

    Its columns, the columns of its bars, its ladder, how it is partitioned and compressed.
    """
    from toolkit.cli.render import echo_json, echo_table

    with choice.store() as store:
        dataset, mark = dataset_of(store, name), store.frozen_before(name)
    if as_json:
        echo_json({**dataset.to_mapping(), "frozen_before": mark})
        return
    echo_table(("column", "type"), [(c.name, c.type) for c in dataset.columns])
    bars = [(a.name, a.kind, ", ".join(a.of), a.by or "") for a in dataset.aggregates]
    echo_table(("column of a bar", "aggregate", "of", "weighted by"), bars)
    click.echo(
        f"key (series, ts{', seq' if dataset.has_seq else ''}); ladder "
        f"{', '.join(dataset.ladder) or 'none'}; partitions of {dataset.partition}; "
        f"drawn by {dataset.chart or 'nothing'}; changes logged by {dataset.changelog}; "
        f"{_compressed(dataset.compress_after)}; {_kept(dataset.retain)}"
        + ("" if mark is None else f"; points before {mark:%Y-%m-%d} may be gone: retention")
    )


def _compressed(age: str) -> str:
    return f"compressed when older than {age}" if age else "not compressed by itself"


def _kept(retain: Retention) -> str:
    ages = [("rows", retain.rows), ("blocks", retain.blocks), *retain.rollups]
    return ", ".join(f"{what} kept for {age or 'ever'}" for what, age in ages)


@datasets.command("set")
@click.argument("name")
@click.option(
    "--compress-after",
    "age",
    metavar="AGE",
    help="From what age on `toolkit compress` takes points: 30d, 12h, 3M; never: none by itself.",
)
@click.option(
    "--retain-rows",
    metavar="AGE",
    help="For how long points are kept that lie in rows; forever: until somebody drops them.",
)
@click.option("--retain-blocks", metavar="AGE", help="For how long those are that were compressed.")
@click.option(
    "--retain-rollup",
    "rollups",
    metavar="STEP=AGE",
    multiple=True,
    help="For how long a rollup is kept: 5m=2y, longer than its points. May be repeated.",
)
@_json
@click.pass_obj
def set_(
    choice: Choice,
    name: str,
    age: str | None,
    retain_rows: str | None,
    retain_blocks: str | None,
    rollups: tuple[str, ...],
    as_json: bool,
) -> None:
    """Change a dataset's policies.

    As op.set_compress_after and op.set_retention do in a migration; what is not given stays.
    `toolkit datasets show` shows them.
    """
    from toolkit.cli.render import echo_json

    if age is None and retain_rows is None and retain_blocks is None and not rollups:
        raise click.UsageError("give --compress-after, or one of --retain-…")
    with choice.store() as store:
        dataset = dataset_of(store, name)
        compress_after, retain = dataset.compress_after, dataset.retain
        wanted = _retained(retain, retain_rows, retain_blocks, rollups)
        if age is not None:
            compress_after = store.set_compress_after(name, "" if age == "never" else age)
        if wanted != retain:
            retain = store.set_retention(name, wanted)
    if as_json:
        said = {"dataset": name, "compress_after": compress_after}
        echo_json({**said, "retain": retain.to_mapping()})
    else:
        click.echo(f"dataset {name!r}: {_compressed(compress_after)}; {_kept(retain)}")


def _retained(
    retain: Retention, rows: str | None, blocks: str | None, rollups: tuple[str, ...]
) -> Retention:
    from toolkit.errors import SchemaError
    from toolkit.retaining import Retention

    def given(age: str | None, old: str) -> str:
        return old if age is None else age.replace("forever", "")

    ages = dict(retain.rollups)
    for pair in rollups:
        step, equals, age = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--retain-rollup {pair}: give a step and an age, as in 5m=2y")
        ages[step] = given(age, "")
    kept = given(rows, retain.rows), given(blocks, retain.blocks), tuple(ages.items())
    try:
        return Retention(*kept)
    except SchemaError as error:
        raise click.UsageError(str(error)) from None


@datasets.command()
@click.argument("name")
@_json
@click.pass_obj
def partitions(choice: Choice, name: str, as_json: bool) -> None:
    """List a dataset's partitions.

    Oldest first, with what rows and what blocks take of each. Rows are the server's estimate.
    """
    from toolkit.cli.render import echo_json, echo_table, sized
    from toolkit.timegrid import to_datetime

    with choice.store() as store:
        found = store.partitions(name)
    if as_json:
        echo_json(
            [
                {
                    "name": p.name,
                    "start": to_datetime(p.span.start),
                    "end": to_datetime(p.span.end),
                    **{n: getattr(p, n) for n in ("rows", "bytes", *_OF_BLOCKS)},
                }
                for p in found
            ]
        )
        return
    headers = ("from", "to", "rows", "size", "in blocks", "blocks", "their size")
    rows = [
        (
            to_datetime(p.span.start),
            to_datetime(p.span.end),
            p.rows,
            sized(p.bytes),
            p.block_points,
            p.blocks,
            sized(p.block_bytes),
        )
        for p in found
    ]
    echo_table(headers, rows, numbers=headers[2:])


@datasets.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="What the dataset shall be called.")
@click.option("--map", "maps", multiple=True, metavar="COLUMN=FILECOLUMN", help="As in load.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["csv", "parquet", "feather"]),
    help="Default: by the file's ending.",
)
@_json
def propose(
    file: Path, name: str, maps: tuple[str, ...], format_: str | None, as_json: bool
) -> None:
    """Propose a dataset for a file.

    Prints the migration that makes it. Looks at the first 250,000 rows. Needs no database;
    nothing is made.
    """
    from toolkit.cli.proposing import migration_of, sample
    from toolkit.cli.render import echo_json, note
    from toolkit.dataset import Dataset

    frame, notes = sample(file, maps, format_)
    for said in notes:
        note(f"{file}: {said}")
    proposed: Dataset = Dataset.from_frame(frame, name)
    if as_json:
        echo_json(proposed.to_mapping())
    else:
        click.echo(migration_of(proposed, file.name), nl=False)
