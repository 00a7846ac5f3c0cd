"""The command `toolkit metrics`: what the server says, for Prometheus and for people."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.cli.choice import Choice


@click.command()
@click.option(
    "--textfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write them to this file, whole or not at all: for node_exporter, by cron.",
)
@click.option("--rules", is_flag=True, help="Print Prometheus' rules, by [alerts], and ask nobody.")
@click.option("--dashboard", is_flag=True, help="Print Grafana's dashboard, and ask nobody.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def metrics(
    choice: Choice, textfile: Path | None, rules: bool, dashboard: bool, as_json: bool
) -> None:
    """Show what the server says: jobs, partitions, replicas, connections.

    In the text format of Prometheus. What happens inside a service (reads, caches, pools) only
    that knows: it calls toolkit.metrics.register(store). Exits 1 where the server did not tell
    all of it.
    """
    from toolkit import __version__
    from toolkit.cli.failing import Failure
    from toolkit.cli.render import echo_json
    from toolkit.metrics import exposing, rendering, server
    from toolkit.metrics.table import Datasets, Values, as_mapping

    if (rules or dashboard) and (rules is dashboard or textfile is not None or as_json):
        raise click.UsageError("--rules and --dashboard each stand alone: they print a file")
    if rules or dashboard:
        said = rendering.rules(choice.settings().alerts) if rules else rendering.dashboard()
        click.echo(said, nl=False)
        return
    figures = server.look(choice.resolved())
    found: Values = {"build_info": {(__version__,): 1.0}}
    found |= server.values(figures, Datasets())
    if textfile is not None:
        exposing.write_textfile(found, textfile)
    if as_json:
        echo_json(as_mapping(found))
    elif textfile is None:
        click.echo(exposing.text(found), nl=False)
    if figures.unknown:
        raise Failure("; ".join(f"{part}: {why}" for part, why in figures.unknown.items()))
