"""The commands about settings and figures: `init`, `config` and `stats`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli.choice import Choice

if TYPE_CHECKING:
    from toolkit_routing import Topology

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("file", default="toolkit.toml", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
@_json
def init(file: Path, force: bool, as_json: bool) -> None:
    """Write a commented toolkit.toml.

    Every setting with its default, to be uncommented where it shall differ.
    """
    from toolkit.cli.failing import Failure
    from toolkit.cli.render import echo_json
    from toolkit.cli.template import template

    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(template())
    except FileExistsError:
        raise Failure(f"{file} exists; --force overwrites it") from None
    if as_json:
        echo_json({"file": str(file)})
    else:
        click.echo(f"wrote {file}; every setting in it is commented out")


@click.group()
def config() -> None:
    """Show the settings, and where each comes from."""


@config.command()
@_json
@click.pass_obj
def show(choice: Choice, as_json: bool) -> None:
    """Show every setting.

    And which flag, variable or file it comes from. Passwords are hidden. Nothing is connected to.
    """
    from toolkit.cli.render import echo_json, echo_table

    settings = choice.settings()
    rows = [(k, v, settings.origins.get(k, "default")) for k, v in settings.shown().items()]
    if settings.topology is not None:
        file = settings.origins.get("shards", "settings")
        rows = [row for row in rows if row[0] != "database.dsn"]
        rows = sorted([*rows, *((k, v, file) for k, v in _nodes(settings.topology))])
    if as_json:
        echo_json({key: {"value": value, "from": origin} for key, value, origin in rows})
    else:
        echo_table(("setting", "value", "from"), rows, cell=200)


def _nodes(topology: Topology) -> Iterator[tuple[str, str]]:
    """Yield what is declared of each node by its place in the file."""
    from toolkit.config import hide_password

    for number, shard in enumerate(topology.shards):
        yield f"shards[{number}].name", shard.name
        for place, node in enumerate(shard.nodes):
            where = f"shards[{number}]." + (f"replicas[{place - 1}]" if place else "primary")
            yield f"{where}.name", node.name
            yield f"{where}.dsn", hide_password(node.conninfo)
            if node.direct:
                yield f"{where}.direct", hide_password(node.direct)
            if node.region:
                yield f"{where}.region", node.region
            yield f"{where}.weight", f"{node.weight:g}"


@click.command()
@click.argument("datasets", nargs=-1, metavar="[DATASET]...")
@_json
@click.pass_obj
def stats(choice: Choice, datasets: tuple[str, ...], as_json: bool) -> None:
    """Show how large the datasets are, and what is unfollowed.

    Rows are the server's estimate; in blocks are the points that were compressed. Unfollowed are
    the changes that some rollup has yet to follow: toolkit refresh brings it to nothing.
    """
    from datetime import UTC, datetime

    from toolkit.cli.render import ago, echo_json, echo_table, sized

    with choice.store() as store:
        found = [store.describe(n) for n in datasets or [d.name for d in store.datasets()]]
    if as_json:
        echo_json(found)
        return
    now = datetime.now(UTC)  # the server's clock may be ahead: what has passed is never to come
    headers = ("dataset", "series", "partitions", "rows", "size", "in blocks", "their size")
    headers += ("rollups", "log", "unfollowed", "refreshed")  # type: ignore[assignment]  # longer
    rows = [
        (
            d.dataset,
            d.series,
            d.partitions,
            d.rows,
            sized(d.bytes),
            d.block_points,
            sized(d.block_bytes),
            sized(d.rollup_bytes),
            sized(d.log_bytes),
            d.unfollowed,
            "never" if d.refreshed_at is None else ago(min(d.refreshed_at, now), now),
        )
        for d in found
    ]
    echo_table(headers, rows, numbers=headers[1:10], words=())
