"""The statements of a plan: which expressions stand in the SQL files' open places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from typing import Literal as OneOf

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from toolkit.catalog import Entry, Rollup
from toolkit.dataset import Dataset, State
from toolkit.decode import Packing
from toolkit.query import Condition
from toolkit.statements import NOTHING, compose, part
from toolkit.strategy.packing import packed, packing_of_points, packing_of_states
from toolkit.strategy.states import state_of_points
from toolkit.timegrid import Grid

_FALSE = SQL("false")

Source = OneOf["one", "many", "labels"]
"""How a statement names its series: one id, an array of ids, or the labels they carry."""


def series_source(entry: Entry, source: Source) -> Composable:
    """Return the rows of series ids that a statement goes through."""
    match source:
        case "one":  # the planner folds it away: 70 µs less than unnest
            return SQL("(SELECT %(id)s::integer)")
        case "many":
            return SQL("unnest(%(ids)s::integer[])")
        case "labels":
            return SQL(
                "(SELECT id FROM {} WHERE dataset_id = %(dataset_id)s "
                "AND labels @> %(labels)s::jsonb ORDER BY name)"
            ).format(Identifier(entry.schema, "series"))


def ids_params(ids: Sequence[int]) -> dict[str, Any]:
    """Return the parameters that name series ids; see :func:`source_of`."""
    return {"id": ids[0]} if len(ids) == 1 else {"ids": list(ids)}


def source_of(ids: Sequence[int]) -> Source:
    """Return how a statement goes through the given series."""
    return "one" if len(ids) == 1 else "many"


def points_statement(
    entry: Entry,
    columns: tuple[str, ...],
    *,
    source: Source,
    where: tuple[Condition, ...] = (),
    has_limit: bool = False,
    descending: bool = False,
    after: bool = False,
    is_cold: bool = False,
    grid: Grid | None = None,
) -> bytes:
    """Return the statement that fetches points with the given value columns.

    Where the range ``is_cold`` it fetches blocks, too, and ``where`` is left to who merges them:
    a row that fails may stand for a point of a block that does not. Given a ``grid``, of blocks
    that lie in one of its buckets the header comes alone.
    """
    is_fixed = grid.width is not None if grid is not None else None
    options = (has_limit, descending, after, is_cold, is_fixed)
    shape = ("points", columns, source, _shape(where), *options)

    def make() -> bytes:
        dataset = entry.dataset
        key = dataset.key[1:]
        tests = NOTHING if is_cold else _where(where, dataset)
        direction = SQL(" DESC") if descending else NOTHING
        return compose(
            "read/fetch_points",
            series=series_source(entry, source),
            packed=packed(packing_of_points(entry, columns)),
            columns=SQL(", ").join(Identifier("t", c) for c in (*key, *columns)),
            points=Identifier(entry.schema, dataset.name),
            where=tests + (_after(dataset) if after else NOTHING),
            order=SQL(", ").join(Identifier("t", k) + direction for k in key),
            limit=SQL(" LIMIT %(limit)s") if has_limit else NOTHING,
            last=no_block(entry, columns, is_refrozen(entry)) if is_cold else is_colder(entry),
            blocks=_blocks(entry, columns, source, has_limit, direction, is_fixed)
            if is_cold
            else NOTHING,
        )

    statement: bytes = entry.once(shape, make)
    return statement


def is_colder(entry: Entry) -> Composed:
    """Return what asks whether blocks hold points of a range taken to be without them.

    Or whether points of it may be gone meanwhile.
    """
    return _is_colder(entry, "%(start)s", "%(cold_start)s")


def _is_colder(entry: Entry, start: str, floor: str) -> Composed:
    blocks = Identifier(entry.schema, f"{entry.dataset.name}_blocks")
    cold = part("read/is_colder", blocks=blocks, start=SQL(start), floor=SQL(floor))
    return SQL("({} OR {})").format(is_refrozen(entry), cold)


def is_refrozen(entry: Entry) -> Composed:
    """Return what asks whether points of a range may be gone that were taken to be there."""
    dataset = Identifier(entry.schema, "dataset")
    return part("read/is_refrozen", dataset=dataset, dataset_id=Literal(entry.id))


def stored_columns(dataset: Dataset, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of blocks that are fetched for some value columns: the key's as well."""
    return (*dataset.key[1:], *columns)


def no_block(entry: Entry, columns: Sequence[str], last: Composable = _FALSE) -> Composed:
    """Return the columns of a block in a row that is none."""
    count = 2 + len(stored_columns(entry.dataset, columns))
    return SQL(", ").join([*[SQL("NULL::bytea")] * count, last])


def no_points(packing: Packing) -> Composed:
    """Return the columns of points in a row that is a block."""
    return SQL(", ").join([SQL("NULL::bigint"), *[SQL("NULL::bytea")] * packing.width])


def _blocks(
    entry: Entry,
    columns: tuple[str, ...],
    source: Source,
    has_limit: bool,
    direction: Composable,
    is_fixed: bool | None,
) -> Composed:
    enough, has_next, before = NOTHING, SQL("false"), NOTHING
    window: Composable = NOTHING
    if has_limit:
        enough, has_next = SQL("WHERE c._before < %(limit)s"), SQL("c._has_next")
        # not counting the first, of which the range's end may leave next to nothing
        before = SQL(
            ", sum(b._rows) OVER w - b._rows - first_value(b._rows) OVER w AS _before, "
            "lead(true) OVER w IS NOT NULL AS _has_next"
        )
        window = SQL("WINDOW w AS (ORDER BY b.lo{}) ").format(direction)
    parts: list[Composable] = [Identifier("c", c) for c in stored_columns(entry.dataset, columns)]
    is_whole: Composable = NOTHING
    if is_fixed is not None:
        parts = [SQL("CASE WHEN NOT c._is_whole THEN {} END").format(p) for p in parts]
        is_whole = part(
            "read/is_whole",
            points=Identifier(entry.schema, entry.dataset.name),
            first=_bucket(is_fixed, "b._first"),
            last=_bucket(is_fixed, "b._last"),
        )
    return part(
        "read/fetch_blocks",
        series=series_source(entry, source),
        nulls=no_points(packing_of_points(entry, columns)),
        blocks=Identifier(entry.schema, f"{entry.dataset.name}_blocks"),
        parts=SQL(", ").join(parts),
        has_next=has_next,
        enough=enough,
        before=before,
        window=window,
        is_whole=is_whole,
        direction=direction,
    )


def buckets_statement(
    entry: Entry,
    states: tuple[State, ...],
    grid: Grid,
    *,
    source: Source,
    where: tuple[Condition, ...] = (),
    has_limit: bool = False,
    descending: bool = False,
    is_total: bool = False,
    is_added: bool = False,
) -> bytes:
    """Return the statement that computes the states of buckets from points."""
    fixed = grid.width is not None
    options = (_shape(where), has_limit, descending, is_total, is_added)
    shape = ("buckets", _names(states), fixed, source, *options)

    def make() -> bytes:
        return compose(
            "read/fetch_buckets",
            series=series_source(entry, source),
            packed=packed(packing_of_states(states, is_added=is_added)),
            bucket=_bucket(fixed),
            states=_leading_comma(
                state_of_points(s, entry.dataset, is_total=is_total) for s in states
            ),
            points=Identifier(entry.schema, entry.dataset.name),
            where=_where(where, entry.dataset),
            direction=SQL(" DESC") if descending else NOTHING,
            limit=SQL(" LIMIT %(limit)s") if has_limit else NOTHING,
            last=is_colder(entry),
        )

    statement: bytes = entry.once(shape, make)
    return statement


def rollup_statement(
    entry: Entry,
    states: tuple[State, ...],
    rollup: Rollup,
    *,
    source: Source,
    is_total: bool = False,
    is_added: bool = False,
    is_cold: bool = False,
) -> bytes:
    """Return the statement that reads a rollup, and what changed since from the points.

    Where the range ``is_cold``, buckets of which blocks may hold points are left out, and named.
    ``is_added`` says that the reader adds the buckets up: to coarser ones, or of several series.
    Then an integer sum among them that has left bigint is an error, is_total or not.
    """
    shape = ("rollup", rollup.relation, _names(states), source, is_total, is_added, is_cold)
    ranges = "changed.ranges * %(hot)s::tstzmultirange" if is_cold else "changed.ranges"
    left_out, colder = SQL("NULL::tstzmultirange"), is_colder(entry)
    if is_cold:
        left_out = SQL("changed.ranges * %(cold)s::tstzmultirange")
        colder = _is_colder(entry, "%(hot_start)s", "%(hot_floor)s")

    def make() -> bytes:
        dataset = entry.dataset
        fresh = _planned_late if source == "one" else _planned_along
        return compose(
            "read/fetch_rollup",
            series=series_source(entry, source),
            rollup=Identifier(entry.schema, "rollup"),
            dataset=Identifier(entry.schema, "dataset"),
            head=Identifier(entry.schema, "rollup_head"),
            log=Identifier(entry.schema, f"{dataset.name}_log"),
            relation=Identifier(entry.schema, rollup.relation),
            points=Identifier(entry.schema, dataset.name),
            packed=packed(packing_of_states(states, is_added=is_added)),
            stored=_leading_comma(Identifier("t", s.name) for s in states),
            fresh=fresh(entry, states, ranges, is_total, is_added),
            left_out=left_out,
            is_colder=colder,
        )

    statement: bytes = entry.once(shape, make)
    return statement


def _planned_along(
    entry: Entry, states: tuple[State, ...], ranges: str, is_total: bool, is_added: bool
) -> Composed:
    """Return the points' part in the statement: planned once for many series."""
    changed = _changed(
        entry,
        states,
        ("s.id", ranges, "%(width)s", "%(origin)s", "%(start)s", "%(end)s"),
        is_total,
        is_added,
    )
    return SQL("CROSS JOIN LATERAL ({}) AS fresh").format(changed)


def _planned_late(
    entry: Entry, states: tuple[State, ...], ranges: str, is_total: bool, is_added: bool
) -> Composed:
    """Return the points' part as a statement of its own, planned only where something changed.

    Planning the points of a long range takes longer than reading its rollup: over 158 partitions
    22.6 ms, 9.8 without.
    """
    changed = _changed(entry, states, ("$1", "$2", "$3", "$4", "$5", "$6"), is_total, is_added)
    packed = [SQL("p{} bytea").format(SQL(str(i))) for i in range(packing_of_states(states).width)]
    return SQL(
        "LEFT JOIN LATERAL {function}({statement}, s.id, {ranges}, %(width)s, %(origin)s, "
        "%(start)s, %(end)s) AS fresh ({columns}) ON true"
    ).format(
        function=Identifier(entry.schema, "run_if_changed_v1"),
        statement=Literal(changed.as_string(None)),
        ranges=SQL(ranges),
        columns=SQL(", ").join([SQL("buckets bigint"), SQL("touched bigint"), *packed]),
    )


def _changed(
    entry: Entry,
    states: tuple[State, ...],
    names: tuple[str, ...],
    is_total: bool,
    is_added: bool,
) -> Composed:
    dataset = entry.dataset
    inputs = dict.fromkeys(c for s in states for c in ((*s.of, s.by) if s.by is not None else s.of))
    keys = ("series_id", "ranges", "width", "origin", "low", "high")
    return part(
        "read/fetch_changed",
        points=Identifier(entry.schema, dataset.name),
        packed=packed(packing_of_states(states, is_added=is_added)),
        states=_leading_comma(state_of_points(s, dataset, is_total=is_total) for s in states),
        inputs=SQL(", ").join(Identifier("c", c) for c in (*dataset.key[1:], *inputs)),
        **{key: SQL(name) for key, name in zip(keys, names, strict=True)},
    )


def probe_statement(entry: Entry, *, source: Source) -> bytes:
    """Return the statement that measures how dense the series are in a range."""

    def make() -> bytes:
        return compose(
            "read/probe_density",
            series=series_source(entry, source),
            points=Identifier(entry.schema, entry.dataset.name),
            last=is_colder(entry),
        )

    statement: bytes = entry.once(("probe", source), make)
    return statement


def extent_statement(entry: Entry, rollup: Rollup, *, source: Source) -> bytes:
    """Return the statement that asks a rollup where the series have been in a range."""

    def make() -> bytes:
        return compose(
            "read/find_extent",
            series=series_source(entry, source),
            relation=Identifier(entry.schema, rollup.relation),
        )

    statement: bytes = entry.once(("extent", rollup.relation, source), make)
    return statement


def probe_blocks_statement(entry: Entry, *, source: Source) -> bytes:
    """Return the statement that measures the same of blocks."""

    def make() -> bytes:
        return compose(
            "read/probe_blocks",
            series=series_source(entry, source),
            blocks=Identifier(entry.schema, f"{entry.dataset.name}_blocks"),
        )

    statement: bytes = entry.once(("probe of blocks", source), make)
    return statement


def _bucket(fixed: bool, instant: str = "t.ts") -> Composable:
    if fixed:
        return SQL("date_bin(%(width)s, {}, %(origin)s)").format(SQL(instant))
    edges = SQL("%(edges)s::timestamptz[]")
    return SQL("({0})[width_bucket({1}, {0})]").format(edges, SQL(instant))


def _where(where: Sequence[Condition], dataset: Dataset) -> Composed:
    tests = [_test(c, i, dataset) for i, c in enumerate(where)]
    return Composed([SQL(" AND ") + t for t in tests])


def _test(condition: Condition, number: int, dataset: Dataset) -> Composed:
    column = dataset.column(condition.column)
    name = Identifier("t", column.name)
    if condition.operator.startswith("is"):
        return SQL("{} {}").format(name, SQL(condition.operator.upper()))
    parameter = SQL(f"%(where_{number})s")
    if condition.operator == "in":
        return SQL("{} = ANY ({})").format(name, parameter)
    operator = SQL(condition.operator)
    return SQL("{} {} {}").format(name, operator, parameter)


def _after(dataset: Dataset) -> Composed:
    if not dataset.has_seq:
        return SQL(" AND {}").format(SQL("t.ts > %(after_ts)s"))
    return SQL(" AND {}").format(SQL("(t.ts, t.seq) > (%(after_ts)s, %(after_seq)s)"))


def _leading_comma(parts: Iterable[Composable]) -> Composed:
    return Composed([SQL(", ") + p for p in parts])


def _shape(where: Sequence[Condition]) -> tuple[tuple[str, str], ...]:
    return tuple((c.column, c.operator) for c in where)


def _names(states: Sequence[State]) -> tuple[str, ...]:
    return tuple(s.name for s in states)
