"""The commands up, status, down and reset over replicas and a PgBouncer."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from fix_local import ask
from fix_replicas import is_stopped, until
from fix_servers import sweep

from toolkit.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run(run_folder: Path) -> Iterator[Run]:
    root = run_folder / "commands"
    root.mkdir(mode=0o711)

    def run(*arguments: str, code: int = 0) -> Result:
        command, *rest = arguments
        result = CliRunner().invoke(main, [command, "--root", str(root), *rest])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    yield run
    sweep(root)


def test_servers_are_asked_for_shown_failed_over_and_taken_away(run: Run, tmp_path: Path) -> None:
    shown = run("up", "--replicas", "2", "--pgbouncer", "--sync").stdout
    for words in ("PostgreSQL pg1", "primary", "PostgreSQL pg3", "streaming", "PgBouncer"):
        assert words in shown
    assert "***" in shown
    up = json.loads(run("up", "--json", "--show-passwords").stdout)
    assert up["is_ready"] is True
    assert [server["role"] for server in up["others"]] == ["replica", "replica"]
    assert list(up["endpoints"]["replicas"]) == ["pg2", "pg3"]
    assert ask(up["endpoints"]["pooled"], "SELECT 1") == 1
    _goes_on_from_what_is_printed(run("up", "--topology").stdout, tmp_path)
    for address in (up["endpoints"]["dsn"], *up["endpoints"]["replicas"].values()):
        assert ask(address, "SELECT pg_has_role('pg_read_all_stats', 'usage')") is True

    # in an orderly way: both replicas have all of it, so that the one can follow the other
    os.kill(up["postgres"]["pid"], signal.SIGINT)
    until(lambda: is_stopped(up["postgres"]["pid"]), "the primary has ended")
    with psycopg.connect(up["endpoints"]["admins"]["pg2"]) as connection:
        connection.execute("SELECT pg_promote()")
    states = {
        server["node"]: server["role"]
        for server in _nodes(json.loads(run("status", "--json", code=3).stdout))
    }
    assert states == {"pg1": "replaced", "pg2": "primary", "pg3": "replica"}
    assert "is no node that could follow pg2" in run("up", "--rejoin", "pg2", code=2).output
    run("up", "--rejoin", "pg1")
    status = json.loads(run("status", "--json").stdout)
    assert status["is_ready"] is True
    assert {s["node"]: s["stream"] for s in _nodes(status)} == {
        "pg1": "streaming",
        "pg2": None,
        "pg3": "streaming",
    }

    assert json.loads(run("down", "--json").stdout) == {"stopped": True}
    assert "down" in run("status", code=3).stdout
    shown = run("up", "--replicas", "0", "--no-pgbouncer").stdout
    assert "pg3" not in shown
    assert "PgBouncer" not in shown
    run("reset", "--yes")
    assert "pg2" not in run("status", code=3).stdout


def _goes_on_from_what_is_printed(topology: str, folder: Path) -> None:
    """The file that `up --topology` prints is all that the console and a look at nodes need."""
    file = folder / "toolkit.toml"
    file.write_text(topology, "utf-8")

    def call(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["--config", str(file), *words])
        assert result.exit_code == code, result.output
        return result.stdout

    assert any(
        pool["name"] == "pg2"
        for pool in json.loads(call("pgbouncer", "show", "databases", "--json"))
    )
    call("migrate", "up")
    checked = call("topology", "check")
    assert "pg_read_all_stats" not in checked
    lines = [line.split() for line in checked.splitlines() if line.startswith(" pg")]
    assert [line[:2] for line in lines] == [
        ["pg1", "primary"],
        ["pg2", "replica"],
        ["pg3", "replica"],
    ]


def _nodes(status: dict[str, object]) -> list[dict[str, object]]:
    others = status["others"]
    assert isinstance(others, list)
    return [status["postgres"], *others]  # type: ignore[list-item]


def test_topology_is_toml_and_nothing_else(run: Run) -> None:
    printed = tomllib.loads(run("up", "--replicas", "1", "--topology").stdout)
    assert list(printed) == ["shards"]
    shards = printed["shards"]
    assert [shard["name"] for shard in shards] == ["local"]
    assert ask(shards[0]["primary"]["dsn"], "SELECT pg_is_in_recovery()") is False
    assert ask(shards[0]["replicas"][0]["dsn"], "SELECT pg_is_in_recovery()") is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--replicas", "9"), "--replicas"),
        (("--replicas", "-1"), "--replicas"),
        (("--sync",), "needs a replica"),
        (("--rejoin", "nobody"), "no node that could follow"),
    ],
)
def test_wrong_wishes_exit_2_and_say_why(run: Run, arguments: tuple[str, ...], said: str) -> None:
    assert said in run("up", *arguments, code=2).output
