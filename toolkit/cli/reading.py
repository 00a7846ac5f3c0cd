"""The commands that read: `query`, `explain`, `latest`, `series` and `label`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli.choice import Choice, dataset_of
from toolkit.cli.numbers import COUNT, Seconds

if TYPE_CHECKING:
    from toolkit.store import Store

Command = Callable[..., None]


class _FileAfterOption(click.ParamType[str]):
    """A file named after an option that may stand alone (then: standard output)."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text != "-" and "." not in text and "/" not in text:
            self.fail(
                f"{text!r} does not look like a file: put the option last, or write ./{text}",
                param,
                ctx,
            )
        return text


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _output(form: str, what: str) -> Callable[[Command], Command]:
    return click.option(
        f"--{form}",
        type=_FileAfterOption(),
        is_flag=False,
        flag_value="-",
        metavar="[FILE]",
        help=f"Write {what}; without FILE, or with -, to standard output.",
    )


_tz = click.option(
    "--tz",
    default="UTC",
    show_default=True,
    help="Zone of times typed without an offset, of days and longer steps, and of the table.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_label = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="Instead of names: all series that carry this label; several must all be carried.",
)
_columns = click.option(
    "--columns", multiple=True, metavar="A,B", help="Only these columns. Default: all."
)
_outputs = _options(
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help='Print {"types": {…}, "rows": [{"series", "ts", columns …}], "plan": {…}}. NULL and '
        "NaN are null, infinities the texts Infinity and -Infinity, decimals exact text.",
    ),
    _output("csv", "CSV (times in UTC, NULL empty)"),
    _output("parquet", "Parquet"),
    _output("png", "a chart: candles where there are open, high, low and close, else lines"),
)
_question = _options(
    click.argument("dataset"),
    click.argument("series", nargs=-1),
    click.argument("start"),
    click.argument("end"),
    click.option(
        "--step",
        help="Bars of this length: a number and s, m, h, d, w, M or y; or auto. Default: points.",
    ),
    click.option(
        "--agg",
        multiple=True,
        metavar="COLUMN=KIND,…",
        help="More columns of a bar: first, last, min, max, sum, count or avg of a column.",
    ),
    click.option(
        "--where",
        multiple=True,
        metavar="CONDITION",
        help="Only points like this, before they are aggregated: 'volume>10', 'side in buy,sell', "
        "'price is not null'. Several must all hold.",
    ),
    _columns,
    click.option(
        "--points", type=COUNT, help="At most this many rows a series, keeping the shape."
    ),
    click.option("--limit", type=COUNT, help="At most this many rows of the answer."),
    click.option("--descending", is_flag=True, help="Newest first."),
    _label,
    click.option("--group-by", metavar="KEY", help="Merge the series with one value of a label."),
    click.option(
        "--strategy",
        type=click.Choice(["auto", "direct", "aggregated", "downsampled"]),
        default="auto",
        show_default=True,
        help="Force a road; the values are the same on each.",
    ),
    click.option(
        "--timeout", type=Seconds(), metavar="SECONDS", help="Cancel the query after this."
    ),
    _tz,
)


def _asked(store: Store, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Store.read`` for what was typed."""
    from toolkit.cli.conditions import read_aggregates, read_conditions, read_labels, read_names
    from toolkit.cli.moments import read_time

    now, tz = datetime.now(UTC), options["tz"]
    times = {k: read_time(options[k], tz, now=now, what=k.upper()) for k in ("start", "end")}
    where = options["where"] and read_conditions(
        options["where"], dataset_of(store, options["dataset"])
    )
    return {
        **options,
        **times,
        "series": list(options["series"]) or None,
        "labels": read_labels(options["labels"]),
        "columns": read_names(options["columns"]),
        "agg": read_aggregates(options["agg"]),
        "where": where or None,
    }


def _one_output(as_json: bool, outputs: Mapping[str, str | None]) -> None:
    asked = [f"--{form}" for form, target in outputs.items() if target is not None]
    asked += ["--json"] if as_json else []
    if len(asked) > 1:
        raise click.UsageError(f"give one of {' and '.join(asked)}, not both")


@click.command(
    options_metavar="[OPTIONS]",
    epilog="Times: 2024-01-31, '2024-01-31 09:30', 2024-01-31T09:30:00Z, now, now-7d, today, "
    "yesterday. END is not included. Options may stand anywhere; end them with -- before a "
    "series whose name begins with a dash.",
)
@_question
@_outputs
@click.pass_obj
def query(
    choice: Choice,
    /,
    as_json: bool,
    csv: str | None,
    parquet: str | None,
    png: str | None,
    **options: Any,
) -> None:
    """Read points, or bars of a step, between two times.

    Without SERIES: all series, or those that carry a --label. Prints a table of at most 40
    rows, the plan, the rows it touched and how long it took.

    \b
        toolkit query candles BTC-USD 2024-01-01 now --step 1h --png btc.png
    """
    outputs = {"csv": csv, "parquet": parquet, "png": png}
    _one_output(as_json, outputs)
    from toolkit.cli.answers import answer
    from toolkit.cli.render import note, working
    from toolkit.strategy import Plan

    with choice.store() as store:
        asked = _asked(store, options)
        with working("reading"):
            columns = store.read(**asked)
        mark = store.frozen_before(options["dataset"])
    is_whole = isinstance(columns.plan, Plan) and columns.plan.strategy == "downsampled"
    if mark is not None and asked["start"] < mark and not is_whole:
        note(f"points before {mark:%Y-%m-%d} may be gone: retention")
    answer(columns, options["tz"], outputs, as_json=as_json)


@click.command()
@_question
@click.option("--analyze", is_flag=True, help="Run the statement, and say what it really took.")
@_json
@click.pass_obj
def explain(choice: Choice, /, analyze: bool, as_json: bool, **options: Any) -> None:
    """Say how a query would be answered, without answering it.

    Takes what query takes. Prints the plan, why the others were not taken, and PostgreSQL's own
    EXPLAIN of the statement.
    """
    from toolkit.cli.answers import plan_mapping
    from toolkit.cli.render import echo_json, echo_line

    with choice.store() as store:
        found = store.explain(**_asked(store, options), analyze=analyze)
    if as_json:
        echo_json(
            {
                "plan": plan_mapping(found.plan),
                "statement": found.statement,
                "database": found.database,
            }
        )
    else:
        echo_line(str(found))


@click.command()
@click.argument("dataset")
@click.argument("series", nargs=-1)
@click.option("-n", type=COUNT, default=1, show_default=True, help="How many of each series.")
@_label
@_columns
@click.option("--step", help="Bars of this length instead of points.")
@_tz
@_outputs
@click.pass_obj
def latest(
    choice: Choice,
    /,
    dataset: str,
    series: tuple[str, ...],
    n: int,
    labels: tuple[str, ...],
    columns: tuple[str, ...],
    step: str | None,
    tz: str,
    as_json: bool,
    **outputs: str | None,
) -> None:
    """Show the newest points, or bars, of each series.

    Oldest first; of all series where none is named.
    """
    _one_output(as_json, outputs)
    from toolkit.cli.answers import answer
    from toolkit.cli.conditions import read_labels, read_names

    with choice.store() as store:
        found = store.latest(
            dataset,
            list(series) or None,
            n=n,
            labels=read_labels(labels),
            columns=read_names(columns),
            step=step,
            tz=tz,
        )
    answer(found, tz, outputs, as_json=as_json)


@click.command()
@click.argument("dataset")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only those that carry this."
)
@_json
@click.pass_obj
def series(choice: Choice, dataset: str, labels: tuple[str, ...], as_json: bool) -> None:
    """List the series of a dataset.

    With the distance of their points, where it is regular, and their labels.
    """
    from toolkit.cli.conditions import read_labels
    from toolkit.cli.render import echo_json, echo_table

    with choice.store() as store:
        found = store.series(dataset, read_labels(labels))
    if as_json:
        echo_json(
            [
                {
                    "name": s.name,
                    "step_seconds": None if s.step is None else s.step / 1e6,
                    "labels": s.labels,
                }
                for s in found
            ]
        )
    else:
        echo_table(("series", "step", "labels"), [(s.name, _step(s.step), s.labels) for s in found])


def _step(us: int | None) -> str:
    if us is None:
        return ""
    for unit, width in (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000)):
        if us % width == 0:
            return f"{us // width}{unit}"
    return f"{us / 1e6:g}s"


@click.command()
@click.argument("dataset")
@click.argument("series")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--remove", multiple=True, metavar="KEY", help="Take this label away.")
@_json
@click.pass_obj
def label(
    choice: Choice,
    dataset: str,
    series: str,
    labels: tuple[str, ...],
    remove: tuple[str, ...],
    as_json: bool,
) -> None:
    """Give a series labels, or take some away.

    Labels it has and that are not named stay. Prints all it has then.
    """
    if not labels and not remove:
        raise click.UsageError("give KEY=VALUE, or --remove KEY")
    from toolkit.cli.conditions import read_labels
    from toolkit.cli.render import echo_json, echo_table

    changes: dict[str, str | None] = {**(read_labels(labels, "label") or {})}
    changes |= dict.fromkeys(remove)
    with choice.store() as store:
        now = store.label(dataset, series, changes)
    if as_json:
        echo_json({"dataset": dataset, "series": series, "labels": now})
    else:
        echo_table(("label", "value"), sorted(now.items()))
