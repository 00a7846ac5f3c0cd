"""The command `check`: whether what the toolkit relies on is so."""

from __future__ import annotations

import click

from toolkit.cli.checking_alerts import judge_alerts
from toolkit.cli.choice import Choice
from toolkit.cli.failing import FAILED
from toolkit.errors import counted

_MORE = "what jobs, refreshes and DDL need: toolkit check --grants --as maintainer"
_AS = click.Choice(["reader", "writer", "maintainer"])


@click.command()
@click.option("--alerts", is_flag=True, help="Judge the alerts, as Prometheus would.")
@click.option("--grants", is_flag=True, help="What a role may do, and the GRANTs that it lacks.")
@click.option("--as", "as_", type=_AS, help="What it is to be. Default: what it seems to be.")
@click.option("--role", metavar="ROLE", help="Whose rights. Default: of who connects.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(
    context: click.Context,
    alerts: bool,
    grants: bool,
    as_: str | None,
    role: str | None,
    as_json: bool,
) -> None:
    """Check what the toolkit relies on.

    --alerts: the thresholds of [alerts], by what the server and Redis say; what only a service
    knows (its reads, its memory) is said to be unknown.

    Exits 1 if an alert fires, or a right lacks.
    """
    if alerts and grants:
        raise click.UsageError("check one or the other: --alerts or --grants")
    if not alerts and not grants:
        raise click.UsageError("say what to check: --alerts or --grants")
    if alerts and (as_ is not None or role is not None):
        raise click.UsageError("--as and --role go with --grants")
    if alerts:
        is_well = judge_alerts(context.obj, as_json)
    else:
        is_well = _grants(context.obj, as_, role, as_json)
    context.exit(0 if is_well else FAILED)


def _grants(choice: Choice, as_: str | None, role: str | None, as_json: bool) -> bool:
    """Say what a role lacks; whether that is nothing."""
    from toolkit.cli.render import echo_json, note
    from toolkit.cli.roles import looking, map_lacks
    from toolkit.granting import standings
    from toolkit.roles import MAINTAINER, grants

    with looking(choice) as (direct, ground, asking):
        (found,) = standings(direct, ground, [role or asking])
    wanted = as_ or found.seems
    lacks = found.lacks[wanted]
    statements = grants(lacks, ground, found.name)
    advised = grants(found.advised[wanted], ground, found.name)
    if as_json:
        echo_json(
            {
                "role": found.name,
                "as": wanted,
                "is": found.roles,
                "lacks": map_lacks(found.lacks),
                "purposes": list(dict.fromkeys(r.rule.purpose for r in lacks)),
                "grants": statements,
                "advised": advised,
            }
        )
        return not lacks
    if not lacks:
        more = "" if as_ or wanted == MAINTAINER else f"; {_MORE}"
        note(f"{found.name!r} has all that a {wanted} needs{more}")
    else:
        purposes = ", ".join(dict.fromkeys(r.rule.purpose for r in lacks))
        note(f"{found.name!r} lacks {counted(len(lacks), 'rights')} of a {wanted}, for: {purposes}")
    for statement in statements:
        click.echo(f"{statement};")
    for statement in advised:
        click.echo(f"{statement};  -- advised: nothing fails without")
    return not lacks
