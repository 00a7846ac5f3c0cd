"""Spans of OpenTelemetry around calls to a server, where the caller has loaded it."""

from __future__ import annotations

import sys
from typing import Any

from toolkit.cluster import Cluster
from toolkit.columns import Columns
from toolkit.config import Settings
from toolkit.errors import DatabaseError
from toolkit.intake import WriteReport
from toolkit.strategy import Plan


class Tracing:
    """Begins a store's spans, by the conventions for databases (``db.*``, stable since 1.33).

    Costs a look into a dictionary where nobody has imported ``opentelemetry``, and imports
    nothing. A span holds the dataset's name, no series, no SQL and no values.
    """

    def __init__(self, settings: Settings, cluster: Cluster | None) -> None:
        self._settings = settings
        self._cluster = cluster
        self._tracer: Any = None
        self._servers: dict[str, dict[str, Any]] | None = None

    def begin(self, operation: str, dataset: str) -> Span | None:
        """Begin a span, which is the current one until it ends; None: nobody wants to know."""
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None:
            return None
        if self._tracer is None:
            self._tracer = trace.get_tracer("toolkit")
        summary = f"{operation} {dataset}"
        span = self._tracer.start_span(summary, kind=trace.SpanKind.CLIENT)
        if not span.is_recording():
            return None
        span.set_attribute("db.system.name", "postgresql")
        span.set_attribute("db.operation.name", operation)
        span.set_attribute("db.collection.name", dataset)
        span.set_attribute("db.query.summary", summary)
        return Span(self, trace, span)

    def server(self, node: str) -> dict[str, Any]:
        """Return the attributes of a node; none of what is no server."""
        if self._servers is None:
            self._servers = _servers(self._settings)
        if not node:  # a write
            node = self._cluster.writer if self._cluster is not None else "primary"
        return self._servers.get(node, {})


class Span:
    """One call's."""

    __slots__ = ("_context", "_span", "_token", "_trace", "_tracing")

    def __init__(self, tracing: Tracing, trace: Any, span: Any) -> None:
        self._tracing = tracing
        self._trace = trace
        self._span = span
        self._context = sys.modules["opentelemetry.context"]
        self._token = self._context.attach(trace.set_span_in_context(span))

    def end(self, outcome: Columns | WriteReport | BaseException | None) -> None:
        """End it with what came of the call."""
        self._context.detach(self._token)
        span, node = self._span, ""
        if isinstance(outcome, Columns):
            plan = outcome.plan
            assert isinstance(plan, Plan)
            node = plan.node
            span.set_attribute("db.response.returned_rows", len(outcome))
            span.set_attribute("toolkit.strategy", plan.strategy)
            span.set_attribute("toolkit.node", node)
        elif isinstance(outcome, BaseException):
            span.set_attribute("error.type", type(outcome).__name__)
            if isinstance(outcome, DatabaseError) and outcome.sqlstate:
                span.set_attribute("db.response.status_code", outcome.sqlstate)
            node = getattr(outcome, "node", "")
            # not its text: PostgreSQL quotes values in it
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        span.set_attributes(self._tracing.server(node))
        span.end()


def _servers(settings: Settings) -> dict[str, dict[str, Any]]:
    from psycopg.conninfo import conninfo_to_dict

    nodes = {"primary": settings.dsn or ""}
    if settings.topology is not None:
        nodes = {n.name: n.conninfo for s in settings.topology.shards for n in s.nodes}
    found: dict[str, dict[str, Any]] = {}
    for name, conninfo in nodes.items():
        parts = conninfo_to_dict(conninfo)
        database = parts.get("dbname") or parts.get("user")
        server = {"db.namespace": f"{database}|{settings.schema}"}
        if host := parts.get("host") or parts.get("hostaddr"):
            server["server.address"] = str(host)
        if str(port := parts.get("port") or 5432).isdigit():
            server["server.port"] = int(port)  # type: ignore[assignment]  # what spans hold
        found[name] = server
    return found
