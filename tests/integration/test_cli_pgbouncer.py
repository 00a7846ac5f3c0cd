"""`toolkit pgbouncer` on real ones: the files it writes, and the console it uses."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner, Result
from fix_pgbouncer import Bouncer, MakePgBouncer
from fix_proxy import Proxy
from fix_servers import Database

from toolkit.cli import main
from toolkit.drivers import drive
from toolkit.drivers.blocking import BlockingDriver
from toolkit.drivers.console import Console, console_of
from toolkit.errors import Busy, ConfigError, QueryTimeout
from toolkit.options import PoolOptions
from toolkit.pgbouncer import Facts, Options, render
from toolkit_routing import Node

VERSIONS = ("1.18", "1.24")
Run = Callable[..., Result]


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def on_port(dsn: str, port: int) -> str:
    parts = urlsplit(dsn)
    login = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()


def write_config(folder: Path, dsn: str, direct: str, console: str = "") -> str:
    file = folder / "toolkit.toml"
    text = f'[[shards]]\nprimary = {{dsn = "{dsn}", direct = "{direct}"}}\n'
    if console:
        text += f'[pgbouncer]\nconsole = "{console}"\n'
    file.write_text(text, "utf-8")
    return str(file)


@pytest.mark.parametrize("version", VERSIONS)
def test_pgbouncer_runs_on_the_files_that_are_rendered(
    version: str, database: Database, pgbouncer: MakePgBouncer, tmp_path: Path
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version=version)
    bouncer.stop()
    # the addresses are a superuser's, so that the secrets can be read
    config = write_config(tmp_path, on_port(database.admin_dsn, bouncer.port), database.admin_dsn)
    arguments = ("--config", config, "pgbouncer", "render", "--pgbouncer-version", version)
    out = tmp_path / "out"
    out.mkdir()
    (out / "userlist.txt").write_text('"who stands there" "already"\n')
    (out / "userlist.txt").chmod(0o644)
    run(*arguments, "--port", str(bouncer.port), "--admin", "pgbouncer", "--output", str(out))
    assert (out / "userlist.txt").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in out.iterdir()) == ["pgbouncer.ini", "userlist.txt"]
    ini, users = ((out / n).read_text("utf-8") for n in ("pgbouncer.ini", "userlist.txt"))
    assert users.count("SCRAM-SHA-256$") == 1
    assert '"who stands there" "already"' in users
    ini = ini.replace(str(out / "userlist.txt"), str(bouncer.home / "userlist.txt"))
    bouncer.log.unlink()
    known = {f.name: getattr(bouncer, f.name) for f in fields(bouncer)}
    users += bouncer.users.splitlines()[0]  # the console's user, whom no server knows
    rendered = Rendered(**known | {"users": users}, ini=f"{ini}logfile = {bouncer.log}\n")
    try:
        rendered.start()
        _serves(rendered, database, version)
    finally:
        rendered.stop()
    said = bouncer.log.read_text("utf-8")
    assert "ERROR" not in said, said
    assert "WARNING" not in said, said


@dataclass(slots=True)
class Rendered(Bouncer):
    """One that runs on the files it is given."""

    ini: str = ""

    def configure(self, **settings: object) -> None:
        self.account.write(self.home / "pgbouncer.ini", self.ini)
        self.account.write(self.home / "userlist.txt", self.users)


def _serves(bouncer: Bouncer, database: Database, version: str) -> None:
    driver = BlockingDriver(on_port(database.admin_dsn, bouncer.port), PoolOptions())
    assert drive(driver.fetch(b"SELECT 1")) == [(1,)]
    assert driver._reached.lacks == ()
    assert driver._reached.is_prepared == (version == "1.24")
    drive(driver.close())
    shown = Console(bouncer.console_dsn).show("config")
    values = {row["key"]: row["value"] for row in shown}
    assert values["pool_mode"] == "transaction"
    assert values["server_login_retry"] == "1"
    assert ("max_prepared_statements" in values) == (version == "1.24")


def test_what_stands_in_the_files_is_not_lost(database: Database, tmp_path: Path) -> None:
    config = write_config(tmp_path, on_port(database.admin_dsn, 6432), database.admin_dsn)
    out = tmp_path / "out"
    out.mkdir()
    users, ini = out / "userlist.txt", out / "pgbouncer.ini"
    users.write_text('; by hand\n"pgbouncer_auth" "asks"\n"postgres" "mine"\n', "utf-8")
    users.chmod(0o644)

    def render_to(*more: str, code: int = 0) -> str:
        arguments = ("--config", config, "pgbouncer", "render", "--output", str(out), *more)
        return run(*arguments, code=code).output

    said = render_to()
    assert "its entries were kept" in said
    assert "the secret of postgres, which is not the server's, was kept; --force" in said
    kept = '; by hand\n"pgbouncer_auth" "asks"\n'
    assert users.read_text("utf-8") == f'{kept}"postgres" "mine"\n'
    assert users.stat().st_mode & 0o777 == 0o600
    render_to()  # the same again

    before = ini.read_text("utf-8")
    said = render_to("--clients", "50", code=1)
    assert "pgbouncer.ini exists and differs; nothing was written; --force" in said
    assert ini.read_text("utf-8") == before
    said = render_to("--clients", "50", "--force")
    assert "was replaced" in said
    assert "max_client_conn = 50" in ini.read_text("utf-8")
    text = users.read_text("utf-8")
    assert text.startswith(kept)
    assert '"postgres" "SCRAM-SHA-256$' in text
    assert '"mine"' not in text
    assert sorted(path.name for path in out.iterdir()) == ["pgbouncer.ini", "userlist.txt"]


def test_secrets_that_may_not_be_read_are_looked_up(
    database: Database, pgbouncer: MakePgBouncer, tmp_path: Path
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn)
    config = write_config(tmp_path, bouncer.dsn, database.dsn)
    result = run("--config", config, "pgbouncer", "render", "--json")
    found = json.loads(result.stdout)
    assert "auth_query = SELECT role, secret FROM pgbouncer.get_auth($1)" in found["ini"]
    assert any("superusers only" in remark for remark in found["remarks"])
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS pgbouncer_auth")
        admin.execute(found["sql"].encode())
        admin.execute("ALTER ROLE pgbouncer_auth PASSWORD 'asks'")
        try:
            asks = '"pgbouncer_auth" "asks"'
            bouncer.users = f"{bouncer.users.splitlines()[0]}\n; a comment\n{asks}\n"
            query = next(line for line in found["ini"].splitlines() if line.startswith("auth_q"))
            bouncer.stop()  # one that runs would remember the secret
            bouncer.configure(auth_user="pgbouncer_auth", auth_query=query.partition(" = ")[2])
            bouncer.start()
            with psycopg.connect(bouncer.dsn) as connection:  # its secret is in no file
                assert connection.execute("SELECT current_user").fetchone() == ("toolkit",)
        finally:
            bouncer.stop()
            admin.execute("DROP SCHEMA pgbouncer CASCADE")
            admin.execute("DROP ROLE pgbouncer_auth")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_console_is_used(version: str, database: Database, pgbouncer: MakePgBouncer) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version=version)
    with psycopg.connect(bouncer.dsn, autocommit=True) as client:
        client.execute("SELECT 1")

        def do(*words: str, code: int = 0) -> Result:
            return run("pgbouncer", *words, "--console", bouncer.console_dsn, code=code)

        for what in ("pools", "clients", "servers", "stats", "databases", "config"):
            assert json.loads(do("show", what, "--json").stdout), what
            assert do("show", what).stdout
        pools = json.loads(do("show", "--json").stdout)
        assert database.name in {pool["database"] for pool in pools}
        before = pid_through(bouncer)
        do("reconnect")
        assert pid_through(bouncer) != before
        do("pause", database.name)
        assert paused(bouncer) == {database.name}
        do("resume", database.name)
        assert paused(bouncer) == set()
        do("pause")
        do("resume")
        client.execute("SELECT 1")
        do("reload")
        unknown = do("pause", database.name + "x", code=2)
        assert database.name in unknown.output
        with client.transaction():
            client.execute("SELECT 1")
            for words in ((), (database.name,)):
                waits = do("pause", *words, "--wait", "0.5", code=4)
                assert "not paused" in waits.output
                client.execute("SELECT 1")
        assert pid_through(bouncer)


def pid_through(bouncer: Bouncer) -> int:
    with psycopg.connect(bouncer.dsn, autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def paused(bouncer: Bouncer) -> set[object]:
    return {row["name"] for row in bouncer.console("SHOW DATABASES") if row["paused"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_no_console_says_so(
    version: str, database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn, version=version)

    def show(console: str, code: int, *more: str) -> str:
        result = run("pgbouncer", "show", "--console", console, *more, code=code)
        return " ".join(result.output.split())

    assert "this is no PgBouncer" in show(console_of(database.dsn), 2)
    assert "this is no PgBouncer" in show(database.dsn, 2)
    denied = show(console_of(bouncer.dsn), 3)
    assert "admin_users" in denied
    assert "console in [pgbouncer]" in denied
    assert "cannot be reached" in show("host=127.0.0.1 port=1 dbname=pgbouncer user=x", 3)
    parts = urlsplit(bouncer.console_dsn)  # the port is PgBouncer's, not PostgreSQL's
    bare = f"host={parts.hostname} user={parts.username} password={parts.password}"
    assert "127.0.0.1:6432" in show(bare, 3)
    assert Console(f"{bare} port={bouncer.port}").version().startswith(version)
    with bouncer.frozen():
        assert "no answer within 0.3 s" in show(bouncer.console_dsn, 1, "--wait", "0.3")
    bouncer.configure(stats_users="toolkit")
    bouncer.console("RELOAD")
    assert '"pool_mode"' in show(console_of(bouncer.dsn), 0, "--json")
    result = run("pgbouncer", "pause", "--console", console_of(bouncer.dsn), code=3)
    assert "admin_users" in result.output


def test_a_migration_lets_pgbouncer_reconnect(
    database: Database, pgbouncer: MakePgBouncer, tmp_path: Path
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn)
    before = pid_through(bouncer)
    config = write_config(tmp_path, bouncer.dsn, database.dsn)
    said = run("--config", config, "migrate", "up")
    assert "toolkit pgbouncer reconnect" in said.output
    assert pid_through(bouncer) == before
    config = write_config(tmp_path, bouncer.dsn, database.dsn, bouncer.console_dsn)
    assert "reconnects" in run("--config", config, "migrate", "up").output
    assert pid_through(bouncer) != before
    before = pid_through(bouncer)
    said = run("--config", config, "--dsn", database.dsn, "migrate", "up")
    assert "was left alone, as --dsn names another database" in said.output
    assert pid_through(bouncer) == before
    bouncer.stop()
    said = run("--config", config, "migrate", "up")
    assert "not reconnected" in said.output


# -- the files, as text -------------------------------------------------------------------------

FACTS = Facts(100, 3, 7, {"ana": "SCRAM-SHA-256$4096:x"})
PRIMARY = Node("pg1", "host=b port=6432 user=ana dbname=shop", "host=db1 user=ana dbname=shop")
REPLICA = Node("pg2", "host=b port=6432 user=ana dbname=shop_2", "host=db2 user=ana dbname=shop")


def rendered(*nodes: Node, version: tuple[int, int] = (1, 24), **facts: Any) -> list[str]:
    each = {node.name: replace(FACTS, **facts) for node in nodes}
    return render(nodes, each, Options(version)).ini.splitlines()


def test_each_node_has_an_entry_of_its_own() -> None:
    lines = rendered(PRIMARY, REPLICA)
    entries = [line.split(" connect_query")[0] for line in lines if "dbname=" in line]
    assert entries == [
        "shop = host=db1 dbname=shop pool_size=75",
        "shop_2 = host=db2 dbname=shop pool_size=75",
    ]
    named = dict(line.split(" = ", 1) for line in lines if " = " in line)
    assert named["default_pool_size"] == "75"
    assert named["reserve_pool_size"] == "5"  # 100 - 3 - 7 - 10 left for others


def test_settings_that_a_version_does_not_know_are_left_out() -> None:
    def names(version: tuple[int, int]) -> set[str]:
        lines = rendered(PRIMARY, version=version)
        return {line.split(" = ")[0] for line in lines if not line.startswith(";")}

    old, middle, new = names((1, 18)), names((1, 20)), names((1, 22))
    assert middle - old == {"track_extra_parameters"}
    assert new - middle == {"max_prepared_statements"}
    assert names((1, 21)) == middle


def test_every_setting_has_a_reason() -> None:
    lines = rendered(PRIMARY, REPLICA)
    start = lines.index("[pgbouncer]") + 1
    for why, setting in zip(lines[start::2], lines[start + 1 :: 2], strict=True):
        assert why.startswith("; ")
        assert " = " in setting


@pytest.mark.parametrize(
    ("nodes", "facts", "match"),
    [
        ((PRIMARY, replace(REPLICA, conninfo=PRIMARY.conninfo)), {}, "dbname=pg2"),
        ((PRIMARY,), {"limit": 11}, "pg1: max_connections: of 11 sessions"),
        ((Node("a", "host=x"),), {}, "user="),
        ((replace(PRIMARY, conninfo="user=ana dbname=pgbouncer"),), {}, "name of the console"),
    ],
)
def test_what_cannot_be_rendered_names_the_entry(
    nodes: tuple[Node, ...], facts: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        rendered(*nodes, **facts)


def test_secrets_that_differ_are_told() -> None:
    facts = {"pg1": FACTS, "pg2": replace(FACTS, secrets={"ana": "SCRAM-SHA-256$4096:y"})}
    found = render((PRIMARY, REPLICA), facts, Options())
    assert any("not the same secret" in remark for remark in found.remarks)
    missing = render((PRIMARY,), {"pg1": replace(FACTS, secrets={})}, Options())
    assert any("no SCRAM secret" in remark for remark in missing.remarks)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("render", "--pgbouncer-version", "new"), "not a version"),
        (("render", "--pgbouncer-version", "1.17"), "version: is older than 1.18"),
        (("render", "--listen", " "), "listen: is empty; give an address"),
        (("render", "--admin", "a\nb"), "admin: is more than one line"),
        (("show", "--console", "bad=secret"), "pgbouncer: console: is no conninfo; give host="),
        (("show", "--console", "postgresql://a:se@cret@h:x/"), "console"),
        (("pause", "--wait", "-1"), "--wait"),
        (("pause", "--wait", "nan"), "--wait"),
    ],
)
def test_wrong_wishes_are_a_sentence(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, "host=b user=ana dbname=shop", "host=db1 user=ana dbname=shop")
    result = run("--config", config, "pgbouncer", *arguments, code=2)
    assert said in result.output
    assert "secret" not in result.output
    assert "should not have happened" not in result.output


class SlowToAnswer(Proxy):
    """Takes its time for every connection."""

    def _serve(self, client: socket.socket) -> None:
        time.sleep(0.6)
        super()._serve(client)


def test_a_command_has_one_deadline_however_many_questions_it_takes(
    database: Database, pgbouncer: MakePgBouncer
) -> None:
    bouncer = pgbouncer(database.dsn, database.admin_dsn)
    proxy = SlowToAnswer(bouncer.console_dsn)
    console = Console(proxy.dsn, deadline=1.0)
    try:
        with psycopg.connect(bouncer.dsn) as client:
            client.execute("SELECT 1")  # a transaction: a pause has to wait for it
            began = time.monotonic()
            assert console.show("databases")
            assert 0.6 < time.monotonic() - began < 1.0
            began = time.monotonic()
            with pytest.raises(QueryTimeout, match="no answer within 1 s"):
                console.reconnect(database.name)  # asks what databases there are, too
            assert time.monotonic() - began < 1.2
            began = time.monotonic()
            with pytest.raises(Busy, match="not paused: after 1 s"):
                console.pause()
            assert time.monotonic() - began < 2.2  # as long again, to take it back
    finally:
        proxy.close()
