"""The command `calibrate`: what the acts of a read cost on a server."""

from __future__ import annotations

import click

from toolkit.cli.choice import Choice
from toolkit.cli.numbers import Seconds
from toolkit.errors import counted


@click.command()
@click.argument("dataset")
@click.option(
    "--seconds",
    type=Seconds(),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to measure; what is measured by then counts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def calibrate(choice: Choice, dataset: str, seconds: float, as_json: bool) -> None:
    """Measure what reads cost on this server.

    Reads a dataset in many ways, changes nothing, and prints the [prices] that the chooser shall
    go by: paste them into toolkit.toml. Best while the server does little else.
    """
    from dataclasses import asdict

    from toolkit.cli.choice import dataset_of
    from toolkit.cli.measuring import fitted, measured
    from toolkit.cli.render import echo_json, note, working

    with choice.store() as store, working("measuring") as say:
        cases = measured(store, dataset_of(store, dataset), seconds, say)
    prices, error = fitted(cases)
    found = {name: float(f"{value:.3g}") for name, value in asdict(prices).items()}
    kinds = counted(len(cases), "kinds")
    note(f"{kinds} of reads; half of them within {error:.0%} of what this says")
    if as_json:
        echo_json({"prices": found, "cases": len(cases), "error": round(error, 4)})
        return
    click.echo(f"[prices]  # microseconds; from toolkit calibrate {dataset}")
    for name, value in found.items():
        click.echo(f"{name} = {value}")
