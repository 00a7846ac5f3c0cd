"""docs/privileges.md: without a right what it is for fails, and with all of them it goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_roles import Cast
from fix_servers import ON_ONE_VERSION, PROJECT

from toolkit import granting, moves
from toolkit.drivers.direct import Direct
from toolkit.errors import AccessDenied, Busy, DatabaseError
from toolkit.roles import MEMBER, ROLES, RULES, STATISTICS, Rule, grants, rights
from toolkit_maintenance import records
from toolkit_maintenance.registry import JOBS

_ROW = re.compile(r"^\| (reader|writer|maintainer) \| `([^`]+)` \| ([^|]+) \|$", re.MULTILINE)
COLD = ("2023-01-01Z", "2023-01-03Z")
HOT = ("2024-01-01Z", "2024-01-02Z")


def bars(day: str, count: int, value: float = 1.0, apart: int = 60) -> dict[str, Any]:
    ts = np.datetime64(day, "us") + np.arange(count) * np.timedelta64(apart, "s")
    return {"ts": ts, "value": value + np.arange(count)}


class Deeds:
    """What the rights are for; each is done with a store of its own, as often as one likes."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.turn = 0
        with cast.store("owner") as store:
            for name in ("A", "B", "C"):
                store.write("metrics", bars("2023-01-01", 2_880), series=name)
                store.write("metrics", bars("2024-01-01", 1_440), series=name)
            store.compress("metrics", end="2024-01-01Z")
            store.refresh("metrics")

    def do(self, role: str, purpose: str) -> None:
        self.turn += 1
        if purpose in BY_STATEMENT:
            with self.cast.direct(role) as direct:
                BY_STATEMENT[purpose](direct)
            return
        with self.cast.store(role) as store:
            BY_STORE[purpose](self, store)

    def read(self, store: Any) -> None:
        assert len(store.read("metrics", "A", *HOT)) == 1_440

    def read_cold(self, store: Any) -> None:
        assert store.read("metrics", "A", *COLD).plan.sources["blocks"] == 2_880

    def read_bars(self, store: Any) -> None:
        for step in ("5m", "1h", "1d"):
            found = store.read("metrics", "A", *HOT, step=step, strategy="downsampled")
            assert found["value_count"].sum() == 1_440

    def write(self, store: Any) -> None:
        frame = bars("2024-01-02", 10) | {"value": np.full(10, float(self.turn))}
        store.delete("metrics", "A", "2024-01-02Z", "2024-01-03Z")
        assert store.write("metrics", frame, series="A", mode="insert").inserted == 10

    def change(self, store: Any) -> None:
        assert store.write("metrics", bars("2024-01-01", 5, self.turn), series="A").updated == 5
        store.write("metrics", bars("2024-01-01", 5), series="A")

    def change_many(self, store: Any) -> None:
        frame = bars("2024-01-01", 1_440)
        both = {k: np.concatenate([v, v]) for k, v in frame.items()}
        both["value"] = both["value"] + self.turn
        names = np.repeat(["B", "C"], 1_440)
        assert store.write("metrics", both | {"series": names}).updated > 2_800

    def delete(self, store: Any) -> None:
        store.delete("metrics", "B", "2024-01-01T23:00Z", "2024-01-01T23:10Z")

    def delete_cold(self, store: Any) -> None:
        start = np.datetime64("2023-01-01", "us") + np.timedelta64(self.turn, "m")
        assert store.delete("metrics", "C", start, start + np.timedelta64(30, "s")) == 1

    def make_series(self, store: Any) -> None:
        store.write("metrics", bars("2024-01-01", 3), series=f"new {self.turn}")

    def write_nearer(self, store: Any) -> None:
        name = f"near {self.turn}"
        with self.cast.store("owner") as owner:
            owner.write("metrics", bars("2024-01-01", 3), series=name)
        store.write("metrics", bars("2024-01-01", 5, apart=10), series=name)

    def label(self, store: Any) -> None:
        assert store.label("metrics", "A", {"turn": str(self.turn)})

    def write_later(self, store: Any) -> None:
        day = np.datetime64("2025-01-01", "D") + 40 * self.turn
        store.write("metrics", bars(str(day), 1), series="A")

    def backfill(self, store: Any) -> None:
        day = np.datetime64("2023-01-10", "D") + self.turn
        assert store.backfill("metrics", bars(str(day), 100), series="A").blocks

    def refresh(self, store: Any) -> None:
        assert store.refresh("metrics")


BY_STORE: dict[str, Callable[[Deeds, Any], Any]] = {
    "connecting": lambda _, store: store.datasets(),
    "opening a store": lambda _, store: store.datasets(),
    "reading points": Deeds.read,
    "reading compressed points": Deeds.read_cold,
    "reading bars from a rollup": Deeds.read_bars,
    "writing points": Deeds.write,
    "changing points": Deeds.change,
    "changing many points at once": Deeds.change_many,
    "deleting points": Deeds.delete,
    "deleting compressed points": Deeds.delete_cold,
    "making a series": Deeds.make_series,
    "writing points nearer to one another": Deeds.write_nearer,
    "labelling a series": Deeds.label,
    "writing into a new partition": Deeds.write_later,
    "loading history into blocks": Deeds.backfill,
    "refreshing, compressing, and all jobs": Deeds.refresh,
}
BY_STATEMENT: dict[str, Callable[[Direct], Any]] = {
    "seeing how jobs went": lambda direct: records.read_states(direct, "toolkit", JOBS.values()),
    "seeing how datasets do": lambda direct: direct.fetch(
        b"SELECT * FROM toolkit.performance_summary"
    ),
    "seeing with the doctor what nobody uses": lambda direct: direct.fetch(
        b"SELECT * FROM toolkit.doctor_snapshot"
    ),
    "seeing its slow statements": lambda direct: direct.fetch(
        b"SELECT * FROM toolkit.slow_queries, toolkit.slow_queries_state"
    ),
}


def test_the_page_has_the_rights_that_are_granted() -> None:
    text = (PROJECT / "docs" / "privileges.md").read_text()
    assert _ROW.findall(text) == [(r.role, shown(r), r.purpose) for r in RULES]


def shown(rule: Rule) -> str:
    """A rule as the page has it."""
    column = f" ({rule.column})" if rule.column else ""
    if rule.kind == MEMBER:
        return f"membership in {rule.on}"
    return f"{rule.privilege}{column} on {rule.kind}{f' {rule.on}' if rule.on else ''}"


def test_all_rights_are_enough_and_each_is_necessary(cast: Cast) -> None:
    deeds, ground = Deeds(cast), cast.ground()
    needed = [r for r in RULES if not r.advised]
    for role, purpose in dict.fromkeys((r.role, r.purpose) for r in needed):
        deeds.do(role, purpose)
    with cast.direct() as direct:
        for rule in needed:
            mine = [r for r in rights(rule.role, ground) if r.rule == rule]
            given = [s.encode() for s in grants(mine, ground, cast.names[rule.role])]
            for statement in given:
                taken = statement.replace(b"GRANT", b"REVOKE", 1).replace(b" TO ", b" FROM ")
                direct.execute(taken)
            kind, said = DatabaseError, "toolkit check --grants"
            if rule.privilege == "CONNECT":  # who may not connect may not check, either
                kind, said = AccessDenied, "permission denied for database"
            with pytest.raises(kind, match=said):
                deeds.do(rule.role, rule.purpose)
            (found,) = granting.standings(direct, ground, [cast.names[rule.role]])
            assert set(found.lacks[rule.role]) == set(mine), rule
            for statement in given:
                direct.execute(statement)
    for role in ROLES:
        deeds.do(role, {"reader": "reading points"}.get(role, "writing points"))


@ON_ONE_VERSION
def test_who_sees_what_others_do_does_not_wait_for_who_rests(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "_LONGEST", 0.3)
    with cast.store("writer") as writer, cast.store("maintainer") as maintainer:
        writer.write("metrics", bars("2024-01-01", 1_440), series="A")
        maintainer.refresh("metrics")
        with psycopg.connect(cast.dsn("reader")) as reader:
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            reader.execute("SELECT FROM toolkit.metrics_blocks")
            with pytest.raises(Busy, match="has not ended"):
                maintainer.compress("metrics", end="2024-02-01Z")
            cast.admin(f"GRANT {STATISTICS} TO {cast.names['maintainer']}")
            assert maintainer.compress("metrics", end="2024-02-01Z").points == 1_440
