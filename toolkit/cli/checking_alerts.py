"""What `toolkit check --alerts` shows: the alerts, judged without Prometheus."""

from __future__ import annotations

import click

from toolkit.cli.choice import Choice


def judge_alerts(choice: Choice, as_json: bool) -> bool:
    """Judge every alert by what the server says; whether none fires."""
    from toolkit.cli.render import echo_json, echo_table
    from toolkit.metrics.alerts import FIRING, judged
    from toolkit.metrics.server import look

    settings = choice.resolved()
    found = list(judged(look(settings), settings.alerts))
    if as_json:
        echo_json(
            [
                {
                    "alert": alert.id,
                    "status": verdict.status,
                    "severity": alert.severity,
                    "threshold": alert.limit(settings.alerts),
                    "said": verdict.said,
                    "advice": alert.description,
                }
                for alert, verdict in found
            ]
        )
    else:
        rows = [(a.id, v.status, a.severity, v.said) for a, v in found]
        echo_table(("alert", "status", "severity", "said"), rows, cell=200, words=["said"])
        for alert, verdict in found:
            if verdict.status == FIRING:
                click.echo(f"\n{alert.id}: {alert.description}")
    return all(verdict.status != FIRING for _, verdict in found)
