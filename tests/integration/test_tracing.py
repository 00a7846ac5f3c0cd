"""Spans of OpenTelemetry: what they say of calls, what they keep to themselves, what they cost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from fix_replicas import MakeCluster
from fix_servers import PROJECT, Database
from fix_stores import COLOURS, cached, minutes, open_store
from fix_topologies import settings_of
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import toolkit
from toolkit.errors import InputError, QueryTimeout

DAY = ("2024-01-01Z", "2024-01-02Z")
SECRET = "kept to ourselves"


@pytest.fixture(scope="session")
def provider() -> TracerProvider:
    """The provider of this process: there is one, and it stays."""
    found = TracerProvider()
    trace.set_tracer_provider(found)
    return found


@pytest.fixture
def spans(provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    """What has ended since the test began."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def said(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


@pytest.mark.parametrize("colour", COLOURS)
def test_a_call_that_goes_to_a_server_is_a_span_that_says_no_values(
    colour: str, database: Database, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer("caller")
    with open_store(colour, cached(database.dsn)) as store:
        store.write("metrics", minutes(100), series=SECRET)
        with tracer.start_as_current_span("request"):
            store.read("metrics", SECRET, *DAY)
            store.latest("metrics", SECRET)
            assert len(list(store.stream("metrics", SECRET, *DAY, rows=60))) == 2
        with psycopg.connect(database.dsn) as other:
            other.execute("LOCK TABLE toolkit.metrics")
            with pytest.raises(QueryTimeout):
                store.read("metrics", SECRET, *DAY, cache=False, timeout=0.1)
        with pytest.raises(InputError):
            store.write("metrics", {"ts": ["x"], "value": [1.0]}, series=SECRET)
        assert not trace.get_current_span().get_span_context().is_valid
        wrote, read, latest, stream, request, late, wrong = spans.get_finished_spans()
        while store.read("metrics", SECRET, *DAY).plan.sources.keys() != {"memory"}:
            pass
        spans.clear()
        assert store.read("metrics", SECRET, *DAY).plan.sources.keys() == {"memory"}
        assert not spans.get_finished_spans()  # nobody was asked
    assert (wrote.name, wrote.kind) == ("write metrics", SpanKind.CLIENT)
    assert said(read) == {
        "db.system.name": "postgresql",
        "db.namespace": f"{database.name}|toolkit",
        "db.operation.name": "read",
        "db.collection.name": "metrics",
        "db.query.summary": "read metrics",
        "db.response.returned_rows": 100,
        "server.address": "127.0.0.1",
        "server.port": int(database.dsn.rpartition(":")[2].partition("/")[0]),
        "toolkit.strategy": "direct",
        "toolkit.node": "primary",
    }
    assert [s.name for s in (latest, stream)] == ["latest metrics", "stream metrics"]
    if colour == "blocking":  # the other's calls run in the runner's own context
        assert {parent_of(s) for s in (read, latest, stream)} == {id_of(request)}
    assert late.status.status_code is StatusCode.ERROR
    assert said(late)["error.type"] == "QueryTimeout"
    assert said(wrong)["error.type"] == "InputError"
    for span in (wrote, read, latest, stream, late, wrong):
        assert SECRET not in span.to_json()
        assert "SELECT" not in span.to_json()


def test_tasks_that_run_at_once_have_spans_of_their_own(
    database: Database, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer("caller")

    async def request(store: toolkit.AsyncStore, series: str) -> None:
        with tracer.start_as_current_span("request"):
            for _ in range(3):
                await store.write("metrics", minutes(10), series=series)
                await store.read("metrics", series, *DAY)

    async def serve() -> None:
        async with toolkit.connect_async(database.dsn) as store:
            await asyncio.gather(*(request(store, name) for name in "abcd"))

    asyncio.run(serve())
    found = spans.get_finished_spans()
    requests = [id_of(s) for s in found if s.name == "request"]
    parents = [parent_of(s) for s in found if s.name != "request"]
    assert len(requests) == 4
    assert sorted(parents, key=str) == sorted(requests * 6, key=str)


def test_a_span_names_the_node_that_answered(
    cluster: MakeCluster, spans: InMemorySpanExporter
) -> None:
    servers = cluster(replicas=1)
    with open_store("blocking", settings_of(servers)) as store:
        store.write("metrics", minutes(10), series="cpu")
        asked = {store.read("metrics", "cpu", *DAY).plan.node for _ in range(4)}
    wrote, *reads = spans.get_finished_spans()
    ports = {name: servers.state.nodes[name] for name in servers.nodes}
    assert said(wrote)["server.port"] == ports["pg1"]
    assert {said(r)["toolkit.node"] for r in reads} == asked
    for read in reads:
        assert said(read)["server.port"] == ports[str(said(read)["toolkit.node"])]


def test_nothing_of_it_is_imported_for_who_has_it_not_loaded(database: Database) -> None:
    code = (
        "import sys, toolkit\n"
        f"with toolkit.connect({database.dsn!r}) as store:\n"
        "    store.read('metrics', None, '2024-01-01Z', '2024-01-02Z')\n"
        "sys.exit(any(m.startswith(('opentelemetry', 'prometheus')) for m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{PROJECT}:{PROJECT / 'routing'}:{PROJECT / 'maintenance'}"},
        check=False,
    )
    assert done.returncode == 0
