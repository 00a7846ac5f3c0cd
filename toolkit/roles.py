"""The roles reader, writer and maintainer: which rights each needs, for what, and their GRANTs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolkit.ddl import blocks_table, ident

READER, WRITER, MAINTAINER = "reader", "writer", "maintainer"
ROLES = (READER, WRITER, MAINTAINER)
"""From the least to the most: a writer may all that a reader may, and a maintainer owns it all."""

DATABASE, SCHEMA, TABLE, FUNCTION, MEMBER = "database", "schema", "table", "function", "member"
_WORDS = {DATABASE: "DATABASE", SCHEMA: "SCHEMA", TABLE: "TABLE", FUNCTION: "FUNCTION"}
STATISTICS = "pg_read_all_stats"


@dataclass(frozen=True, slots=True)
class Rule:
    """A right that a role needs, and what it could not do without.

    ``on`` names a table or function of the schema, with ``<dataset>`` for those that every
    dataset has. A right that is only ``advised`` makes nothing fail: what is missing is seen.
    """

    role: str
    privilege: str
    kind: str
    on: str
    purpose: str
    column: str = ""
    advised: bool = False


def _rule(role: str, right: str, purpose: str) -> Rule:
    """Build from a line like ``UPDATE (step) on table series``.

    >>> _rule("writer", "UPDATE (step) on table series", "").column
    'step'
    """
    granted, _, place = right.partition(" on ")
    privilege, _, column = granted.partition(" ")
    kind, _, on = place.partition(" ")
    return Rule(role, privilege, kind, on, purpose, column.strip("()"))


RULES = (
    _rule(READER, "CONNECT on database", "connecting"),
    _rule(READER, "USAGE on schema", "opening a store"),
    _rule(READER, "SELECT on table toolkit_version", "opening a store"),
    _rule(READER, "SELECT on table dataset", "opening a store"),
    _rule(READER, "SELECT on table rollup", "opening a store"),
    _rule(READER, "SELECT on table series", "reading points"),
    _rule(READER, "SELECT on table <dataset>", "reading points"),
    _rule(READER, "SELECT on table <dataset>_blocks", "reading compressed points"),
    _rule(READER, "SELECT on table <dataset>_log", "reading bars from a rollup"),
    _rule(READER, "SELECT on table <dataset>_<step>", "reading bars from a rollup"),
    _rule(READER, "SELECT on table rollup_head", "reading bars from a rollup"),
    _rule(READER, "EXECUTE on function run_if_changed_v1", "reading bars from a rollup"),
    _rule(READER, "SELECT on table job_run", "seeing how jobs went"),
    _rule(READER, "SELECT on table performance_summary", "seeing how datasets do"),
    _rule(READER, "SELECT on table slow_queries", "seeing its slow statements"),
    _rule(READER, "EXECUTE on function slow_queries_v1", "seeing its slow statements"),
    _rule(READER, "SELECT on table slow_queries_state", "seeing its slow statements"),
    _rule(READER, "EXECUTE on function slow_queries_state_v1", "seeing its slow statements"),
    _rule(READER, "SELECT on table doctor_snapshot", "seeing with the doctor what nobody uses"),
    *(
        Rule(READER, right, TABLE, "popularity", "counting what is read often", advised=True)
        for right in ("SELECT", "INSERT", "UPDATE")
    ),
    _rule(WRITER, "INSERT on table <dataset>", "writing points"),
    _rule(WRITER, "UPDATE on table <dataset>", "changing points"),
    _rule(WRITER, "DELETE on table <dataset>", "deleting points"),
    _rule(WRITER, "INSERT (dataset_id) on table series", "making a series"),
    _rule(WRITER, "INSERT (name) on table series", "making a series"),
    _rule(WRITER, "INSERT (step) on table series", "making a series"),
    _rule(WRITER, "UPDATE (step) on table series", "writing points nearer to one another"),
    _rule(WRITER, "UPDATE (labels) on table series", "labelling a series"),
    _rule(WRITER, "EXECUTE on function ensure_partitions", "writing into a new partition"),
    _rule(WRITER, "TEMPORARY on database", "changing many points at once"),
    _rule(WRITER, "INSERT on table <dataset>_blocks", "loading history into blocks"),
    _rule(WRITER, "UPDATE (cold_to) on table dataset", "loading history into blocks"),
    _rule(WRITER, "INSERT on table <dataset>_log", "deleting compressed points"),
    _rule(WRITER, "DELETE on table <dataset>_blocks", "deleting compressed points"),
    Rule(MAINTAINER, "USAGE", MEMBER, "<owner>", "refreshing, compressing, and all jobs"),
    Rule(
        MAINTAINER,
        "USAGE",
        MEMBER,
        STATISTICS,
        "seeing what others do: who is in the way, who only rests, what is slow",
        advised=True,
    ),
)
"""Every right there is to be granted; docs/privileges.md has them as a table."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What there is to be granted in a database: its schema, whose it is, and its datasets.

    ``datasets`` are those of the schema, each with the tables of its rollups.
    """

    database: str
    schema: str
    owner: str
    datasets: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Right:
    """One privilege on one thing, as a rule has it; ``name`` is without the schema."""

    rule: Rule
    name: str

    def __str__(self) -> str:
        """Return it as people say it: ``UPDATE (step) on series``."""
        column = f" ({self.rule.column})" if self.rule.column else ""
        if self.rule.kind == MEMBER:
            return f"membership in {self.name}"
        return f"{self.rule.privilege}{column} on {self.rule.kind} {self.name}"


def rights(role: str, ground: Ground) -> list[Right]:
    """Return all that one who is ``role`` needs: what lesser roles need, too."""
    upto = ROLES.index(role) + 1
    wanted = [r for r in RULES if r.role in ROLES[:upto]]
    if role == MAINTAINER:  # the owner may all in the schema
        wanted = [r for r in wanted if r.kind in (MEMBER, DATABASE)]
    return [Right(rule, name) for rule in wanted for name in _names(rule, ground)]


def _names(rule: Rule, ground: Ground) -> Iterator[str]:
    if rule.kind == DATABASE:
        yield ground.database
    elif rule.kind == SCHEMA:
        yield ground.schema
    elif rule.on == "<dataset>_<step>":
        for levels in ground.datasets.values():
            yield from levels
    elif "<dataset>" in rule.on:
        for dataset in ground.datasets:
            suffix = rule.on.removeprefix("<dataset>")
            yield blocks_table(dataset) if suffix == "_blocks" else f"{dataset}{suffix}"
    else:
        yield ground.owner if rule.on == "<owner>" else rule.on


def grants(wanted: Iterable[Right], ground: Ground, grantee: str) -> list[str]:
    """Return the statements that give rights to a role; what has the same rights goes together."""
    privileges: dict[tuple[str, str], list[str]] = {}
    for right in wanted:
        column = f" ({ident(right.rule.column)})" if right.rule.column else ""
        found = privileges.setdefault((right.rule.kind, right.name), [])
        found.append(f"{right.rule.privilege}{column}")
    places: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (kind, name), given in privileges.items():
        places.setdefault((kind, tuple(given)), []).append(_place(kind, name, ground))
    to = ident(grantee)
    return [
        f"GRANT {', '.join(names)} TO {to}"
        if kind == MEMBER
        else f"GRANT {_joined(given)} ON {_WORDS[kind]} {', '.join(names)} TO {to}"
        for (kind, given), names in places.items()
    ]


def _place(kind: str, name: str, ground: Ground) -> str:
    return ident(ground.schema, name) if kind in (TABLE, FUNCTION) else ident(name)


def _joined(privileges: Sequence[str]) -> str:
    """Return privileges as GRANT wants them: the columns of one together.

    >>> _joined(['SELECT', 'INSERT ("a")', 'INSERT ("b")'])
    'SELECT, INSERT ("a", "b")'
    """
    columns: dict[str, list[str]] = {}
    for privilege in privileges:
        word, _, column = privilege.partition(" ")
        columns.setdefault(word, []).extend([column.strip("()")] if column else [])
    return ", ".join(f"{w} ({', '.join(c)})" if c else w for w, c in columns.items())
