"""Rules of Prometheus and the dashboard of Grafana, written from the lists of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.metrics.alerts import ALERTS
from toolkit.metrics.dashboard import DASHBOARD, HEIGHT, WIDTH, Panel
from toolkit.options import AlertOptions

RULES, GRAFANA = "prometheus/alerts.yml", "grafana/toolkit.json"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HEAD = """\
# Alerts of the toolkit, with the thresholds of [alerts]. Written by: toolkit metrics --rules
groups:
  - name: toolkit
    rules:
"""


def rules(options: AlertOptions = AlertOptions()) -> str:
    """Return the file of rules, in YAML, with the thresholds of settings."""
    said = [_HEAD]
    for alert in ALERTS:
        # a string of JSON is one of YAML
        said.append(
            f"      - alert: {alert.name}\n"
            f"        expr: {json.dumps(alert.expression(options))}\n"
            f"        for: {alert.lasting}\n"
            f"        labels:\n"
            f"          severity: {alert.severity}\n"
            f"        annotations:\n"
            f"          summary: {json.dumps(alert.summary)}\n"
            f"          description: {json.dumps(alert.description)}\n"
        )
    return "".join(said)


def dashboard() -> str:
    """Return the dashboard, in JSON, for Grafana 10 and newer; it asks for its data source."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in DASHBOARD:
        place = {"h": 1, "w": 24, "x": 0, "y": y}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row.title, "gridPos": place}
            | {"collapsed": False, "panels": []}
        )
        y += 1
        for number, panel in enumerate(row.panels):
            down, across = divmod(number, 24 // WIDTH)
            place = {"h": HEIGHT, "w": WIDTH, "x": across * WIDTH, "y": y + down * HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place} | _panel(panel))
        y += -(-len(row.panels) // (24 // WIDTH)) * HEIGHT
    found = {
        "title": "Time-series toolkit",
        "uid": "timeseries-toolkit",
        "tags": ["timeseries-toolkit"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }
    return json.dumps(found, indent=1) + "\n"


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
        for n, (expr, legend) in enumerate(panel.lines)
    ]
    about = {"description": panel.about} if panel.about else {}
    defaults = {"unit": panel.unit, "min": 0} if panel.title != "Growth in an hour" else {}
    return {
        "type": "timeseries",
        "title": panel.title,
        **about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults or {"unit": panel.unit}, "overrides": []},
        "targets": targets,
    }


def write(folder: Path) -> None:
    """Write both files below a folder."""
    for place, said in ((RULES, rules()), (GRAFANA, dashboard())):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(said, "utf-8")
