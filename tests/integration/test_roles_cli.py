"""`toolkit roles` and `toolkit check --grants`: what they grant, and what they say lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from fix_cli import Run, write_bars
from fix_roles import Cast
from fix_servers import Database
from fix_stores import store_bars
from psycopg import sql

import toolkit
from toolkit import granting, migrate
from toolkit.cli import main
from toolkit.config import load_settings
from toolkit.drivers.direct import Direct
from toolkit.options import PoolOptions

ODD = """we"ird 'näme' {x}:y"""


@pytest.fixture
def nobody(cast: Cast) -> Iterator[str]:
    """A role that may nothing but connect."""
    name = f"{cast.database.name}_nobody"
    connect = f"GRANT CONNECT ON DATABASE {cast.database.name} TO {name}"
    cast.admin(f"CREATE ROLE {name} LOGIN PASSWORD 'hush'", connect)
    cast.names["nobody"] = name
    yield name
    cast.admin(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def checked(run: Run, cast: Cast, role: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What `toolkit check --grants` says to a role."""
    said = run("check", "--grants", "--json", *arguments, code=code, dsn=cast.dsn(role))
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def test_each_role_is_told_what_it_is_and_what_it_lacks_to_be_more(cast: Cast, run: Run) -> None:
    for number, role in enumerate(("reader", "writer", "maintainer")):
        found = checked(run, cast, role)
        assert (found["role"], found["as"]) == (cast.names[role], role)
        assert found["is"] == ["reader", "writer", "maintainer"][: number + 1]
        assert found["grants"] == []
        advised = [f'GRANT "pg_read_all_stats" TO "{cast.names[role]}"']
        assert found["advised"] == (advised if role == "maintainer" else [])
    said = run("check", "--grants", dsn=cast.dsn("writer"))
    assert "all that a writer needs; what jobs, refreshes and DDL need: toolkit" in said.stderr
    found = checked(run, cast, "reader", "--as", "writer", code=1)
    assert "INSERT on table candles" in found["lacks"]["writer"]
    assert "writing points" in found["purposes"]
    assert any(
        statement.startswith("GRANT INSERT, UPDATE, DELETE") for statement in found["grants"]
    )
    found = checked(run, cast, "writer", "--as", "maintainer", code=1)
    assert found["lacks"]["maintainer"] == ["membership in toolkit"]
    assert found["grants"] == [f'GRANT "toolkit" TO "{cast.names["writer"]}"']
    for who in (cast.dsn("owner"), cast.database.admin_dsn):  # the owner may all, a superuser too
        said = run("check", "--grants", "--as", "maintainer", dsn=who)
        assert "has all that a maintainer needs" in said.stderr


def test_what_check_prints_makes_a_nobody_what_it_is_to_be(
    cast: Cast, run: Run, nobody: str
) -> None:
    found = checked(run, cast, "nobody", code=1)
    assert (found["as"], found["is"]) == ("reader", [])
    assert "USAGE on schema toolkit" in found["lacks"]["reader"]
    for role in ("reader", "writer"):
        said = run("check", "--grants", "--as", role, dsn=cast.dsn("nobody"), code=1)
        assert f"'{nobody}' lacks" in said.stderr
        cast.admin(said.stdout)
        said = run("check", "--grants", "--as", role, dsn=cast.dsn("nobody"))
        assert (said.stdout, "has all that" in said.stderr) == ("", True)
    with cast.store("nobody") as store:
        store_bars(store, 10)
        assert len(store.read("candles", "BTC-USD", "2024-01-01Z", "2024-01-02Z")) == 10
    # one right of a dataset is taken: it still seems a writer, and is told which
    cast.admin(f"REVOKE DELETE ON toolkit.trades FROM {nobody}")
    found = checked(run, cast, "owner", "--role", nobody, code=1)
    assert (found["as"], found["grants"]) == (
        "writer",
        [f'GRANT DELETE ON TABLE "toolkit"."trades" TO "{nobody}"'],
    )


def test_what_roles_sql_prints_is_all_a_role_needs(cast: Cast, run: Run, nobody: str) -> None:
    for role in ("reader", "writer"):
        said = run("roles", "sql", f"--{role}", nobody).stdout
        assert said == run("roles", "sql", f"--{role}", nobody).stdout  # whatever is there
        cast.admin(said)
        assert role in checked(run, cast, "nobody", "--as", role)["is"]
    made = json.loads(run("roles", "sql", "--maintainer", "not yet", "--json").stdout)
    assert 'GRANT "toolkit" TO "not yet"' in made["statements"]
    assert made["advised"] == ['GRANT "pg_read_all_stats" TO "not yet"']


def test_the_owner_applies_what_it_may_all_or_none(cast: Cast, run: Run, nobody: str) -> None:
    for _ in range(2):
        said = run("roles", "apply", "--reader", nobody)
        assert ("GRANT SELECT" in said.stdout) == ("nothing was lacking" not in said.stderr)
    assert "nothing was lacking" in said.stderr
    before = checked(run, cast, "nobody", "--as", "writer", code=1)["lacks"]
    # the database is not the owner's: TEMPORARY is not its to give
    said = run("roles", "apply", "--writer", nobody, code=1)
    assert "nothing was granted" in said.stderr
    assert "TEMPORARY ON DATABASE" in said.stderr
    assert "toolkit roles sql prints the statements" in said.stderr
    assert checked(run, cast, "nobody", "--as", "writer", code=1)["lacks"] == before
    said = run("roles", "apply", "--writer", nobody, dsn=cast.database.admin_dsn)
    assert checked(run, cast, "nobody")["is"] == ["reader", "writer"]
    # and a reader may give nothing at all
    said = run("roles", "apply", "--maintainer", nobody, dsn=cast.dsn("reader"), code=1)
    way = f"an administrator has to run: toolkit roles sql --maintainer {nobody}"
    assert f"nothing was granted; {way}\n" in said.stderr
    assert checked(run, cast, "nobody")["is"] == ["reader", "writer"]


def test_show_lists_who_is_what(cast: Cast, run: Run, nobody: str) -> None:
    cast.admin(f"GRANT USAGE ON SCHEMA toolkit TO {nobody}")
    found = json.loads(run("roles", "show", "--json").stdout)
    shown = {r["role"]: r for r in found["roles"]}
    assert found["owner"] == "toolkit"
    assert shown[cast.names["writer"]]["is"] == ["reader", "writer"]
    assert shown["toolkit"]["is"] == ["reader", "writer", "maintainer"]
    assert shown[nobody]["is"] == []
    assert "postgres" not in shown
    assert cast.names["maintainer"] in run("roles", "show").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["check"], 2, "say what to check: --alerts or --grants"),
        (["check", "--alerts", "--grants"], 2, "check one or the other"),
        (["roles", "sql", "--reader", ""], 2, "name a role"),
        (["roles", "apply", "--writer", "", "--reader", "ana"], 2, "name a role"),
        (["check", "--grants", "--as", "king"], 2, "'king' is not one of"),
        (["check", "--grants", "--role", "no such"], 2, "no role 'no such' on this server"),
        (["roles", "apply"], 2, "name a role"),
        (["roles", "apply", "--writer", "no such"], 2, "no role 'no such' on this server"),
        (["roles", "sql", "--schema", "nowhere", "--reader", "x"], 1, "is not migrated"),
    ],
)
def test_wrong_use_is_a_sentence(run: Run, arguments: list[str], code: int, said: str) -> None:
    assert said in run(*arguments, code=code).stderr


def test_names_of_every_kind_are_quoted(empty_database: Database) -> None:
    admin, name = empty_database.admin_dsn, f'{empty_database.name} "ödd" %s'
    migrate.upgrade(admin, schema=ODD)
    options = ["--dsn", admin, "--schema", ODD]
    with psycopg.connect(admin, autocommit=True) as connection:
        role = sql.Identifier(name)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'hush'").format(role))
        try:
            done = CliRunner().invoke(main, [*options, "roles", "apply", "--writer", name])
            assert done.exit_code == 0, done.output
            check = [*options, "check", "--grants", "--role", name, "--as", "writer"]
            assert CliRunner().invoke(main, check).exit_code == 0
            settings = replace(load_settings(admin), schema=ODD)
            with Direct(admin, PoolOptions()) as direct:
                ground, _ = granting.find_ground(direct, ODD)
                assert set(ground.datasets) == {"candles", "trades", "metrics"}
                assert set(ground.datasets["trades"]) == {
                    f"trades_{step}" for step in ("1m", "5m", "1h", "1d")
                }
            with toolkit.Store(settings) as store:
                store_bars(store, 3)
            connection.execute(sql.SQL("SET ROLE {}").format(role))
            table = sql.Identifier(ODD, "performance_summary")
            connection.execute(sql.SQL("SELECT * FROM {}").format(table))
            connection.execute("RESET ROLE")
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_the_commands_of_each_role_run_as_it(cast: Cast, run: Run, tmp_path: Path) -> None:
    day = ("2024-01-01", "2024-01-02")
    csv = str(write_bars(tmp_path / "bars.csv", 1_440))
    cast_as = {
        "writer": [
            ["load", csv, "--dataset", "candles", "--series", "A"],
            ["load", csv, "--dataset", "candles", "--series", "B", "--compressed"],
            ["delete", "candles", "A", day[0], f"{day[0]}T01:00", "--yes"],
        ],
        "maintainer": [
            ["refresh"],
            ["compress", "candles", "--to", "2024-02-01"],
            ["datasets", "set", "candles", "--compress-after", "30d"],
        ],
        "reader": [
            ["datasets", "partitions", "candles"],
            ["query", "candles", "B", *day, "--step", "1h"],
            ["stats"],
            ["migrate", "status"],
        ],
    }
    for role, commands in cast_as.items():
        for command in commands:
            run(*command, dsn=cast.dsn(role))
    said = run("refresh", dsn=cast.dsn("reader"), code=1)
    assert "toolkit check --grants" in said.stderr
