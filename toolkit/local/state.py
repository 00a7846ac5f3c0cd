"""What an instance of the local servers remembers between runs."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.local.layout import FIRST

log = logging.getLogger(__name__)

# what goes into addresses and the servers' configurations as it is
_PASSWORD = re.compile(r"[A-Za-z0-9_-]+")
_NODE = re.compile(r"pg[1-9][0-9]?")
VALKEY, PGBOUNCER = "Valkey", "PgBouncer"


def _password() -> str:
    return secrets.token_urlsafe(24)


class DamagedState(ConfigError):
    """The state cannot be read, by anybody; making the servers anew is the way out."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            str(path),
            "",
            "damaged, and the passwords with it; `toolkit reset` makes the servers anew, "
            "without their data",
        )


@dataclass(frozen=True, slots=True)
class State:
    """What an instance keeps: its passwords, its ports, its binaries, and which servers it has.

    ``nodes`` are the PostgreSQL servers with their ports. Which of them is the primary is not
    kept: their data folders say it.
    """

    admin_password: str = field(default_factory=_password, repr=False)
    toolkit_password: str = field(default_factory=_password, repr=False)
    valkey_password: str = field(default_factory=_password, repr=False)
    nodes: Mapping[str, int | None] = field(default_factory=lambda: {FIRST: None})
    valkey_port: int | None = None
    pg_bin: str | None = None
    replication_password: str = field(default_factory=_password, repr=False)
    pgbouncer_password: str = field(default_factory=_password, repr=False)
    pgbouncer_port: int | None = None
    is_pooled: bool = False
    is_sync: bool = False

    @classmethod
    def load(cls, path: Path) -> State | None:
        """Read the state; None where there is none yet."""
        try:
            data = path.read_bytes()
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                log.warning("%s was readable by others; made 0600", path)
                path.chmod(0o600)
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise DamagedState(path) from error
        except PermissionError as error:
            raise ConfigError(
                str(path), "", f"{error.strerror}: these servers belong to another user"
            ) from error
        except OSError as error:
            raise ConfigError(
                str(path), "", f"{error.strerror}; name another folder with --root or TOOLKIT_HOME"
            ) from error
        try:
            return cls.from_mapping(json.loads(data.decode("utf-8")))
        except (ValueError, KeyError, TypeError, RecursionError):
            # not "from": what cannot be read may still hold a password
            raise DamagedState(path) from None

    @classmethod
    def from_mapping(cls, kept: Mapping[str, object]) -> State:
        """Return the state that ``kept`` is; ValueError, KeyError or TypeError if it is none.

        >>> State.from_mapping({**asdict(State()), "valkey_port": 0})
        Traceback (most recent call last):
        ValueError: valkey_port
        >>> State.from_mapping({**asdict(State()), "nodes": {"../x": 5432}})
        Traceback (most recent call last):
        ValueError: nodes
        """
        if "postgres_port" in kept:  # kept before there were replicas
            later = ("replication_password", "pgbouncer_password", "pgbouncer_port")
            kept = (
                {name: getattr(cls(), name) for name in (*later, "is_pooled", "is_sync")}
                | {"nodes": {FIRST: kept["postgres_port"]}}
                | dict(kept)
            )
        found = {f.name: kept[f.name] for f in fields(cls)}
        for name, value in found.items():
            if not _is_sane(name, value):
                raise ValueError(name)
        return cls(**found)  # type: ignore[arg-type]  # just checked, field by field

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all, readable by nobody else."""
        if path.is_dir() and not path.is_symlink():  # only where it is damaged, see load
            shutil.rmtree(path)
        scratch = path.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if os.geteuid() == 0:  # root may be helping out an ordinary user: leave it readable
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            json.dump(asdict(self), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)

    def port_of(self, server: str) -> int | None:
        """The port that a node, "Valkey" or "PgBouncer" had last."""
        if server == VALKEY:
            return self.valkey_port
        return self.pgbouncer_port if server == PGBOUNCER else self.nodes[server]

    def with_port(self, server: str, port: int) -> State:
        """This state with another port for a server."""
        if server == VALKEY:
            return replace(self, valkey_port=port)
        if server == PGBOUNCER:
            return replace(self, pgbouncer_port=port)
        return replace(self, nodes={**self.nodes, server: port})

    def with_nodes(self, number: int, by_worth: Sequence[str]) -> State:
        """This state with so many nodes; the last of ``by_worth`` go first.

        >>> State(nodes={"pg1": 1, "pg2": 2}).with_nodes(3, ["pg2", "pg1"]).nodes
        {'pg1': 1, 'pg2': 2, 'pg3': None}
        >>> State(nodes={"pg1": 1, "pg2": 2}).with_nodes(1, ["pg2", "pg1"]).nodes
        {'pg2': 2}
        """
        names = [*by_worth[:number]]
        free = (name for n in range(1, 100) if (name := f"pg{n}") not in self.nodes)
        names += islice(free, number - len(names))
        return replace(self, nodes={name: self.nodes.get(name) for name in sorted(names)})


def _is_sane(name: str, value: object) -> bool:
    if name.endswith("_password"):
        return isinstance(value, str) and _PASSWORD.fullmatch(value) is not None
    if name.endswith("_port"):
        return value is None or (type(value) is int and 1 <= value <= 65_535)
    if name.startswith("is_"):
        return isinstance(value, bool)
    if name == "nodes":
        return isinstance(value, dict) and bool(value) and all(map(_is_node, value.items()))
    return value is None or isinstance(value, str)


def _is_node(item: tuple[object, object]) -> bool:
    name, port = item
    is_name = isinstance(name, str) and _NODE.fullmatch(name) is not None
    return is_name and _is_sane("node_port", port)
