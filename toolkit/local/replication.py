"""How nodes follow each other: who is the primary, what each is told, copies and rewinds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.errors import Unavailable
from toolkit.local.account import Account
from toolkit.local.layout import Layout
from toolkit.local.postgres import Postgres, quoted
from toolkit.local.process import run
from toolkit.local.state import State

log = logging.getLogger(__name__)

ROLE = "toolkit_replication"
_TIMEOUT_S = 3600.0


def primary_of(nodes: Mapping[str, Postgres]) -> str | None:
    """The name of the node that others follow; None where every one is a standby.

    An old primary that came back after a promotion has the lower timeline. Of two that were
    promoted from the same one the first is taken that runs.
    """
    found = [name for name, node in nodes.items() if node.is_made and not node.is_standby]

    def rank(name: str) -> tuple[int, bool]:
        return nodes[name].timeline, nodes[name].running() is not None

    return max(found, key=rank, default=None)


def node(layout: Layout, name: str) -> Postgres:
    """A PostgreSQL server of an instance."""
    return Postgres(layout.data(name), layout.log(name))


def nodes(layout: Layout, state: State) -> dict[str, Postgres]:
    """All PostgreSQL servers of an instance by their names."""
    return {name: node(layout, name) for name in state.nodes}


def is_replaced(node: Postgres) -> bool:
    """Whether a node that is not the primary was it once."""
    return node.is_made and not node.is_standby


def told(layout: Layout, state: State, name: str) -> str:
    """What a node shall be told about whom it follows, or who follows it."""
    of = nodes(layout, state)
    primary = primary_of(of)
    assert primary is not None
    if name == primary:
        standbys = [n for n in of if n != primary and not is_replaced(of[n])]
        return primary_settings(standbys if state.is_sync else [])
    port = state.port_of(primary)
    assert port is not None
    return standby_settings(port, layout.passfile, name)


def slot_of(node: str) -> str:
    """The replication slot that a node reads from, on whichever is the primary."""
    return f"toolkit_{node}"


def conninfo(port: int, passfile: Path, node: str) -> str:
    """How to connect as the replication role; the password stands in ``passfile`` only.

    >>> print(conninfo(5432, Path("/it's"), "pg2"))
    host='127.0.0.1' port='5432' user='toolkit_replication' dbname='postgres' \
passfile='/it\\'s' application_name='pg2' sslmode='disable' connect_timeout='3' \
keepalives_idle='5'
    """
    words = {
        "host": "127.0.0.1",
        "port": str(port),
        "user": ROLE,
        "dbname": "postgres",
        "passfile": str(passfile),
        "application_name": node,
        "sslmode": "disable",
        "connect_timeout": "3",
        "keepalives_idle": "5",
    }
    escaped = {k: v.replace("\\", "\\\\").replace("'", "\\'") for k, v in words.items()}
    return " ".join(f"{name}='{value}'" for name, value in escaped.items())


def standby_settings(port: int, passfile: Path, node: str) -> str:
    """What a standby is told: whom it follows, and that the primary spares what it reads.

    Without feedback a vacuum on the primary cancels reads here. With it the primary keeps dead
    rows for as long as the longest read, which has a statement timeout; and for a standby that is
    gone, until its slot is given up (``max_slot_wal_keep_size``).
    """
    settings = {
        "primary_conninfo": conninfo(port, passfile, node),
        "primary_slot_name": slot_of(node),
        "hot_standby_feedback": "on",
        # how soon it notices a primary that is gone or back; the defaults are 60 and 5 s
        "wal_receiver_timeout": "10s",
        "wal_retrieve_retry_interval": "500ms",
    }
    return _text(settings)


def primary_settings(synchronous: Sequence[str]) -> str:
    """What a primary is told: which standbys a commit waits for one of.

    >>> print(primary_settings(["pg2", "pg3"]).splitlines()[1])
    synchronous_standby_names = 'ANY 1 (pg2, pg3)'
    """
    if not synchronous:
        return ""
    return _text({"synchronous_standby_names": f"ANY 1 ({', '.join(synchronous)})"})


def _text(settings: Mapping[str, str]) -> str:
    lines = [f"{name} = {quoted(value)}" for name, value in settings.items()]
    return "\n".join(["# written whenever the roles change", *lines, ""])


def passfile_text(password: str) -> str:
    """A libpq password file for the replication role, on whatever port."""
    return f"127.0.0.1:*:*:{ROLE}:{password}\n"


def backup_command(program: Path, source: str, target: Path, slot: str) -> list[str]:
    """The command that copies a running primary; its WAL comes along from the slot."""
    return [
        str(program.with_name("pg_basebackup")),
        f"--dbname={source}",
        f"--pgdata={target}",
        f"--slot={slot}",
        "--wal-method=stream",
        "--checkpoint=fast",
        "--no-sync",
    ]


def rewind_command(program: Path, source: str, target: Path) -> list[str]:
    """The command that takes from a stopped server what only it has, up to where it left."""
    return [
        str(program.with_name("pg_rewind")),
        f"--source-server={source}",
        f"--target-pgdata={target}",
        "--no-sync",
    ]


def copy(node: Postgres, program: Path, account: Account, source: str, slot: str) -> None:
    """Make a standby by a base backup; what was in its folder goes."""
    with node.anew(account) as scratch:
        command = backup_command(program, source, scratch, slot)
        outcome = run(command, account, timeout_s=_TIMEOUT_S)
        if outcome.code != 0:
            raise Unavailable(f"pg_basebackup failed in {scratch}:\n{outcome.text}")
        Postgres(scratch, node.log).make_standby(account)


def rewind(node: Postgres, program: Path, account: Account, source: str) -> bool:
    """Turn a stopped old primary into a standby; False where that cannot be, and it is gone."""
    with node.aside() as scratch:
        outcome = run(rewind_command(program, source, scratch), account, timeout_s=_TIMEOUT_S)
        Postgres(scratch, node.log).make_standby(account)
    if outcome.code != 0:
        log.warning("pg_rewind failed in %s:\n%s", node.data, outcome.text)
    return outcome.code == 0
