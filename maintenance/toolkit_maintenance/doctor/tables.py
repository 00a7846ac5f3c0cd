"""Checks of tables: bloat, memory, partitions, vacuum and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.sql import SQL, Literal

from toolkit.errors import counted
from toolkit.statements import name
from toolkit.timegrid import Grid, Span, Step, iso, to_datetime, to_us
from toolkit_maintenance.bloat import Index
from toolkit_maintenance.doctor.check import Answers, Check, altering, found, settled, unknown
from toolkit_maintenance.doctor.finding import CRIT, WARN, Finding, Thing, listed
from toolkit_maintenance.tables import span_of


@dataclass(frozen=True, slots=True)
class Table:
    """A table that holds rows, perhaps a partition, and what the server has counted of it."""

    root: str
    name: str
    is_partition: bool
    bound: str | None
    bytes: int
    pages: int
    visible: int
    live: int
    dead: int
    scans: int
    scanned: int
    fetched: int
    vacuums: int
    analyzes: int
    hits: int
    reads: int
    index_hits: int
    index_reads: int
    options: tuple[str, ...]
    analyzed: float  # rows; -1: never

    @property
    def rows(self) -> float:
        """Live rows: the collected count is younger than the analyzed one, but lost in a crash.

        Where there is neither, by their bytes, and rather too few.
        """
        return self.live or (self.analyzed if self.analyzed >= 0 else self.bytes / 100)

    @property
    def span(self) -> Span | None:
        """The range of time that a partition is for; None where it has another kind of bound."""
        return span_of(self.name, self.bound)


def tables_of(answers: Answers, node: str | None = None) -> list[Table]:
    """Return the tables that a node has counted."""
    rows = answers.rows["tables"][node or answers.primary]
    return [Table(*settled(row)) for row in rows]


def _run(text: str, answers: Answers, table: str) -> str:
    return SQL(text).format(name(answers.schema, table)).as_string(None)


# -- what takes more than it needs --------------------------------------------------------------


_INDEX_ANEW = "REINDEX INDEX CONCURRENTLY {}"
_TABLE_ANEW = (
    "-- locks {0}: ACCESS EXCLUSIVE, nobody reads or writes it until this has ended\n"
    "VACUUM (FULL, ANALYZE) {0}"
)


def judge_bloat(answers: Answers) -> Finding:
    """By estimate, and only what is large: of indexes what the job reindex is sure to act on.

    No job makes a table anew: it is locked for as long as that takes, and new rows fill its space
    by themselves.
    """
    limits, things, unseen = answers.limits, [], []
    fixes: dict[str, str] = {}
    logs = {f"{d.name}_log" for d in answers.datasets}
    for index in (Index.from_row(row) for row in answers["index_sizes"]):
        root = index.table_parent or index.table
        if root in logs:  # the next writes fill it
            continue
        if index.most is None and index.is_plain and index.method == "btree" and index.is_valid:
            unseen.append(index.name)
        if index.is_surely_bloated(answers.of_primary.now) and index.most is not None:
            wasted = index.bytes - index.most
            if wasted >= limits.bloat_bytes:
                things.append(_bloated(root, index.name, "index", index.bytes, wasted))
                fixes[index.name] = _run(_INDEX_ANEW, answers, index.name)
    for root, own, size, needed in answers["bloat"]:
        if root in logs:  # a refresh empties it
            continue
        if needed is None:
            unseen.append(own)
        elif needed:  # else a plain vacuum cuts it
            wasted = size - needed
            if wasted >= limits.bloat_bytes and wasted >= limits.bloat_share * size:
                things.append(_bloated(root, own, "table", size, wasted))
                fixes[own] = _run(_TABLE_ANEW, answers, own)
    if not things and unseen:
        return unknown(
            "bloat",
            f"{listed(unseen)}: never analyzed, or the role may not see its statistics; ANALYZE, "
            "as the owner, makes it known",
            unknown=len(unseen),
        )
    worst = sorted(things, key=lambda t: -t.weight)
    said = listed([f"{t.name} ({t.weight / t.figures['bytes']:.0%} of it)" for t in worst])
    kinds = {str(t.figures["kind"]) for t in things}
    ways = {
        "index": "the job reindex makes indexes anew",
        "table": "VACUUM FULL locks everybody out of a table meanwhile, so no job does it, and new "
        "rows would fill it as well",
    }
    return found(
        "bloat",
        things,
        f"by estimate empty, and read all the same: {said}; "
        + "; ".join(ways[k] for k in sorted(kinds)),
        well="by estimate nothing large is half empty",
        fix=[fixes[t.name] for t in worst],
        evidence={
            "is_estimate": True,
            "wasted_bytes": round(sum(t.weight for t in things)),
            "unknown": len(unseen),
        },
    )


def _bloated(root: str, own: str, kind: str, size: int, wasted: float) -> Thing:
    return Thing(root, own, wasted, {"kind": kind, "bytes": size, "wasted_bytes": round(wasted)})


def judge_hit_rate(answers: Answers) -> Finding:
    """The share of blocks found in shared_buffers, of rows and of indexes, dataset by dataset.

    What PostgreSQL reads may still come from the system's memory: a hint, not a fault of its own.
    Where few were missed the rate costs nobody anything: loading and the first maintenance read
    all there is some times.
    """
    limits, things, total, evidence = answers.limits, [], 0, {}
    for node in answers.facts:
        sums: dict[str, list[int]] = {}
        for table in tables_of(answers, node):
            own = sums.setdefault(table.root, [0] * 4)
            counts = [table.hits, table.reads, table.index_hits, table.index_reads]
            sums[table.root] = [a + b for a, b in zip(own, counts, strict=True)]
        whole = [sum(c) for c in zip(*sums.values(), strict=True)] if sums else [0] * 4
        total += sum(whole)
        for kind, at in (("heap", 0), ("index", 2)):
            asked = whole[at] + whole[at + 1]
            evidence[f"{node}.{kind}"] = round(whole[at] / asked, 4) if asked else None
            for root, counts in sums.items():
                blocks, missed = counts[at] + counts[at + 1], counts[at + 1]
                if missed >= limits.hit_blocks and counts[at] < limits.hit_rate * blocks:
                    rate = {"kind": kind, "node": node, "hit_rate": round(counts[at] / blocks, 4)}
                    things.append(Thing(root, f"{root} ({kind}, {node})", counts[at + 1], rate))
    if not things and total < limits.hit_blocks:
        return unknown(
            "hit-rate",
            f"only {counted(total, 'blocks')} asked for since the statistics were reset; "
            f"{limits.hit_blocks:,} tell something",
            **evidence,
        )
    said = listed([f"{t.name} {t.figures['hit_rate']:.0%}" for t in things])
    return found(
        "hit-rate",
        things,
        f"seldom found in memory: {said}; more shared_buffers (settings-shared_buffers), or less "
        "to read: compress what is cold",
        well=f"{limits.hit_rate:.0%} of blocks and more are found in memory",
        evidence=evidence,
    )


# -- partitions ---------------------------------------------------------------------------------


def judge_ahead(answers: Answers) -> Finding:
    """Each dataset has its present partition and ``maintenance.ahead`` of the next.

    One that never had a point has none, and may wait for the first run of the job.
    """
    ahead = answers.settings.maintenance.ahead
    there: dict[str, set[Span]] = {}
    for table in tables_of(answers):
        if table.is_partition and (span := table.span) is not None:
            there.setdefault(table.root, set()).add(span)
    things, fixes, status = [], [], WARN
    for dataset in answers.datasets:
        grid, start = Grid(Step.parse(dataset.partition)), to_us(answers.of_primary.now)
        start, missing = grid.floor_one(start), []
        present = there.get(dataset.name)
        if not present:
            continue
        for number in range(ahead + 1):
            span = Span(start, int(grid.edges(Span(start, start + 1))[1]))
            if not any(s.start <= span.start < span.end <= s.end for s in present):
                missing.append(span)
                if number == 0:
                    status = CRIT
            start = span.end
        if missing:
            figures = {"missing": len(missing), "from": iso(missing[0].start)}
            things.append(Thing(dataset.name, dataset.name, len(missing), figures))
            text = SQL("SELECT {}({}, {}, {})").format(
                name(answers.schema, "ensure_partitions"),
                Literal(dataset.name),
                Literal(to_datetime(missing[0].start).isoformat()),
                Literal(to_datetime(missing[-1].end).isoformat()),
            )
            fixes.append(text.as_string(None))
    said = listed([f"{t.name} lacks {t.figures['missing']}" for t in things])
    return found(
        "partitions-ahead",
        things,
        f"of the present partition and the next {ahead}: {said}; the first write into one waits "
        "for it to be made, and writers past the toolkit fail",
        well=f"each dataset has its present partition and the next {ahead}",
        fix=fixes,
        status=status,
    )


def judge_many(answers: Answers) -> Finding:
    """Parents with so many partitions that planning and the memory of sessions feel it."""
    most = answers.limits.partitions
    things = [
        Thing(table, table, count, {"partitions": count, "empty": empty})
        for table, count, empty, _ in answers["parents"]
        if count > most
    ]
    said = listed([f"{t.name} has {t.figures['partitions']:,}" for t in things])
    return found(
        "partitions-many",
        things,
        f"{said} partitions: each costs every session memory and each plan time; declare a "
        "longer partition interval, or let retention drop what is past",
        well=f"no table has more than {most:,} partitions",
    )


# -- vacuum and statistics ----------------------------------------------------------------------


def judge_never_vacuumed(answers: Answers) -> Finding:
    """Tables with rows that no vacuum has come to: index-only scans then visit each row.

    What counts is the visibility map, which outlives statistics; ``relallvisible`` is its sum as
    of the last vacuum.
    """
    least = answers.limits.unvacuumed_rows
    things = [
        Thing(t.root, t.name, t.rows, {"rows": round(t.rows), "bytes": t.bytes})
        for t in tables_of(answers)
        if t.rows >= least and not t.vacuums and t.visible < 0.5 * t.pages
    ]
    roots = dict.fromkeys(t.parent for t in sorted(things, key=lambda t: -t.weight))
    said = listed([t.name for t in sorted(things, key=lambda t: -t.weight)])
    return found(
        "never-vacuumed",
        things,
        f"{said}: never vacuumed, so that reads by index visit every row; toolkit vacuum does it",
        well="each table with many rows has been vacuumed",
        fix=[_run("VACUUM (ANALYZE) {}", answers, root) for root in roots],
    )


def judge_never_analyzed(answers: Answers) -> Finding:
    """Tables with rows, and parents over such, that the planner knows nothing of.

    Autovacuum never analyzes a parent (TRAPS 25): plans over all partitions go by defaults.
    """
    least, things = answers.limits.unvacuumed_rows, []
    rows: dict[str, float] = {}
    for table in tables_of(answers):
        rows[table.root] = rows.get(table.root, 0.0) + table.rows
        if table.rows >= least and table.analyzed < 0:
            things.append(Thing(table.root, table.name, table.rows, {"rows": round(table.rows)}))
    for parent, _, _, analyzed in answers["parents"]:
        if rows.get(parent, 0.0) >= least and analyzed < 0:
            figures = {"rows": round(rows[parent])}
            things.append(Thing(parent, parent, rows[parent], figures))
    roots = dict.fromkeys(t.parent for t in sorted(things, key=lambda t: -t.weight))
    only = "ONLY " if answers.of_primary.version >= 180_000 else ""
    apart = {t.parent for t in things if t.name != t.parent}
    fixes = [
        _run(f"ANALYZE {only if root not in apart else ''}{{}}", answers, root) for root in roots
    ]
    said = listed([t.name for t in sorted(things, key=lambda t: -t.weight)])
    return found(
        "never-analyzed",
        things,
        f"{said}: never analyzed, so that plans go by guesses; autovacuum leaves parents out",
        well="each table with many rows has been analyzed, parents included",
        fix=fixes,
    )


def judge_options(answers: Answers) -> Finding:
    """Whether autovacuum comes to partitions that are only inserted into, in time.

    A parent refuses such options, so each partition has its own (TRAPS 25).
    """
    owned = {d.name for d in answers.datasets}
    told = {row[0]: row[1] for row in answers["settings"]}
    things = [
        Thing(t.root, t.name, t.rows, {"rows": round(t.rows)})
        for t in tables_of(answers)
        if t.is_partition and t.root in owned and _is_slack(t.options)
    ]
    if told.get("autovacuum") == "off":
        return Finding(
            "settings-autovacuum",
            CRIT,
            "autovacuum is off: rows that are dead stay, and the server stops before wraparound",
            {"setting": "autovacuum", "value": "off", "advised": "on", "parameter": "1"}
            | {"needs_restart": False},
            altering("autovacuum", "on"),
        )
    parts = "autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_enabled = true"
    return found(
        "settings-autovacuum",
        things,
        f"{listed([t.name for t in things])}: autovacuum is off, or comes only after a fifth of it "
        "was inserted anew",
        well="autovacuum comes to each partition as it fills",
        fix=[_run(f"ALTER TABLE {{}} SET ({parts})", answers, t.name) for t in things],
    )


def _is_slack(options: Sequence[str]) -> bool:
    told: dict[str, Any] = dict(o.split("=", 1) for o in options)
    is_off = str(told.get("autovacuum_enabled", "true")).lower() in ("false", "off", "no", "0")
    return is_off or "autovacuum_vacuum_insert_scale_factor" not in told


CHECKS = (
    Check(
        "bloat",
        "tables and indexes half empty, by estimate",
        ("bloat", "index_sizes"),
        judge_bloat,
    ),
    Check("hit-rate", "rows and indexes found in memory", ("tables",), judge_hit_rate),
    Check("partitions-ahead", "partitions missing ahead", ("tables",), judge_ahead),
    Check("partitions-many", "too many partitions", ("tables", "parents"), judge_many),
    Check("never-vacuumed", "tables no vacuum has come to", ("tables",), judge_never_vacuumed),
    Check(
        "never-analyzed",
        "tables and parents without statistics",
        ("tables", "parents"),
        judge_never_analyzed,
    ),
    Check(
        "settings-autovacuum",
        "autovacuum, and how soon it comes to partitions",
        ("tables", "settings"),
        judge_options,
    ),
)
