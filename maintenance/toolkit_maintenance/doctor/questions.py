"""The questions that checks need answered: which statement, of which nodes, with what in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from toolkit.config import Settings
from toolkit.drivers import Params, Rows, drive
from toolkit.drivers.direct import Direct
from toolkit.drivers.shelf_settings import read_shelf_settings
from toolkit.errors import DatabaseError, QueryTimeout, SchemaError, Unavailable
from toolkit.nodes import describe_nodes
from toolkit.opening import cluster_of, primary_node
from toolkit.statements import compose, name, raw
from toolkit_maintenance.doctor import queries, settings
from toolkit_maintenance.doctor.check import Facts, Thresholds
from toolkit_maintenance.doctor.machine import Machine, machine_of

NO_RIGHT, NOT_READY = "42501", "55000"


class Untold(Exception):
    """A question that has no answer here; the sentence says what would change that."""


@dataclass(frozen=True, slots=True)
class Context:
    """What statements are composed from."""

    settings: Settings
    limits: Thresholds


@dataclass(frozen=True, slots=True)
class Question:
    """One statement; ``everywhere``: of each node, for what only all of them know together."""

    ask: Callable[[Direct, Facts, Context], Rows]
    everywhere: bool = False


def _simple(statement: str, *, everywhere: bool = False) -> Question:
    def ask(direct: Direct, facts: Facts, context: Context) -> Rows:
        place = statement if "/" in statement else f"doctor/{statement}"
        return direct.fetch(compose(place), _schema(context))

    return Question(ask, everywhere)


def _schema(context: Context) -> Params:
    return {"schema": context.settings.schema, "least": context.limits.bloat_bytes}


def _indexes(direct: Direct, facts: Facts, context: Context) -> Rows:
    has_last = facts.version >= 160_000
    last = raw("pg_stat_get_lastscan(c.oid)" if has_last else "NULL::timestamptz")
    return direct.fetch(compose("doctor/list_indexes", last_scan=last), _schema(context))


def _statements(statement: str) -> Question:
    def ask(direct: Direct, facts: Facts, context: Context) -> Rows:
        if facts.statements is None:
            raise Untold(
                "pg_stat_statements is not there: shared_preload_libraries = 'pg_stat_statements', "
                "a restart, and CREATE EXTENSION pg_stat_statements"
            )
        return direct.fetch(compose(f"doctor/{statement}", schema=name(facts.statements)))

    return Question(ask)


def _snapshots(statement: str) -> Question:
    def ask(direct: Direct, facts: Facts, context: Context) -> Rows:
        table = name(context.settings.schema, queries.SNAPSHOTS)
        params = {"age": context.limits.statistics_age}
        return direct.fetch(compose(f"doctor/{statement}", snapshots=table), params)

    return Question(ask)


def _checkpoints(direct: Direct, facts: Facts, context: Context) -> Rows:
    if facts.version >= 170_000:
        return direct.fetch(compose("doctor/count_checkpoints"))
    return direct.fetch(compose("doctor/count_checkpoints_before"))


def _lag(direct: Direct, facts: Facts, context: Context) -> Rows:
    """Of a topology what its own look says, else what the primary says of who receives its log."""
    if context.settings.topology is None:
        rows = direct.fetch(compose("doctor/list_senders"))
        return [(r[0], r[2], r[3], ()) for r in rows]
    with cluster_of(context.settings) as cluster:
        reports = drive(describe_nodes(cluster, context.settings.schema))
    return [
        (r.name, r.lag.bytes, r.lag.seconds, r.problems)
        for r in reports
        if r.is_up and (r.declared == "replica" or r.role == "replica")
    ]


def _settings(direct: Direct, facts: Facts, context: Context) -> Rows:
    return direct.fetch(compose("doctor/list_settings"), {"names": list(settings.NAMES)})


def _redis(direct: Direct, facts: Facts, context: Context) -> Rows:
    try:
        return list(read_shelf_settings(context.settings.cache.redis).items())
    except (Unavailable, DatabaseError) as error:
        raise Untold(str(error)) from error


QUESTIONS: Mapping[str, Question] = {
    "indexes": Question(_indexes, everywhere=True),
    "unattached": _simple("list_unattached"),
    "unindexed_keys": _simple("list_unindexed_keys"),
    "tables": _simple("list_tables", everywhere=True),
    "parents": _simple("list_parents"),
    "bloat": _simple("estimate_bloat"),
    "index_sizes": _simple("reindex/list_indexes"),
    "sessions": _simple("list_sessions", everywhere=True),
    "holders": _simple("list_holders"),
    "ages": _simple("list_ages"),
    "slots": _simple("list_slots"),
    "senders": _simple("list_senders"),
    "connections": _simple("count_connections", everywhere=True),
    "checkpoints": Question(_checkpoints),
    "lag": Question(_lag),
    "statements": _statements("list_statements"),
    "statements_since": _statements("look_at_statements"),
    "snapshot": _snapshots("read_snapshot"),
    "known_indexes": _snapshots("list_known_indexes"),
    "settings": Question(_settings),
    "redis": Question(_redis),
}


class Asker:
    """Sessions on each node, and what they have said; used in a ``with`` block.

    A replica that cannot be reached is ``lost``, and why; without the primary nothing is told:
    Unavailable.
    """

    def __init__(self, settings: Settings, limits: Thresholds) -> None:
        self.context = Context(settings, limits)
        self.primary = "primary"
        self.nodes: dict[str, Direct] = {}
        self.facts: dict[str, Facts] = {}
        self.lost: dict[str, str] = {}
        self.rows: dict[str, dict[str, Rows]] = {}
        self.untold: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Asker:
        try:
            self._connect()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connect(self) -> None:
        given = self.context.settings
        options = replace(given.pool, application_name="toolkit doctor")
        if given.topology is None:
            assert given.dsn is not None
            wanted = [("primary", given.dsn)]
        else:
            self.primary = primary_node(given).name
            nodes = given.topology.shards[0].nodes
            wanted = [(n.name, n.direct or n.conninfo) for n in nodes]
        for node, address in wanted:
            try:
                direct = self._stack.enter_context(Direct(address, options, node))
                self.facts[node] = Facts(*direct.fetch(compose("doctor/look_at_node"))[0])
                self.nodes[node] = direct
            except Unavailable as error:
                self._lose(node, error)

    @property
    def machine(self) -> Machine:
        """The primary's machine, where that is this one."""
        return machine_of(self.nodes[self.primary].pid, self.facts[self.primary].is_near)

    def ask(self, questions: Iterable[str]) -> None:
        """Ask what has not been asked yet; what cannot be answered is ``untold``, and why."""
        for key in questions:
            if key in self.rows or key in self.untold:
                continue
            question = QUESTIONS[key]
            rows: dict[str, Rows] = {}
            try:
                for node in list(self.nodes) if question.everywhere else [self.primary]:
                    try:
                        rows[node] = self._asked(question, node)
                    except Unavailable as error:
                        self._lose(node, error)
            except Untold as error:
                self.untold[key] = str(error)
            else:
                self.rows[key] = rows

    def _lose(self, node: str, error: Unavailable) -> None:
        """Have a node count as lost, whatever it has said; not so the primary."""
        if node == self.primary:
            raise error
        self.lost[node] = str(error).removeprefix(f"{node}: ")
        self.nodes.pop(node, None)
        self.facts.pop(node, None)
        for rows in self.rows.values():
            rows.pop(node, None)

    def _asked(self, question: Question, node: str) -> Rows:
        try:
            return question.ask(self.nodes[node], self.facts[node], self.context)
        except SchemaError as error:
            raise Untold(str(error)) from error
        except QueryTimeout as error:
            why = str(error).removeprefix(f"{node}: ")
            raise Untold(f"{node} took too long to say: {why}") from error
        except DatabaseError as error:
            if error.sqlstate == NO_RIGHT:
                role = self.facts[node].role
                raise Untold(
                    f"role {role} may not see that ({error}); toolkit check --grants says "
                    "what lacks"
                ) from error
            if error.sqlstate == NOT_READY:
                raise Untold(f"{error}; that takes a restart of the server") from error
            raise
