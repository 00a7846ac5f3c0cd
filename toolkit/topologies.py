"""The ``[[shards]]`` and ``[routing]`` of a configuration file, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ConfigError, UnknownName, shorten
from toolkit_routing import CHOICES, Node, Shard, Topology, TopologyError

_NODE = ("name", "dsn", "direct", "region", "weight")
_SHARD = ("name", "primary", "replicas")


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """How nodes are looked at and chosen, and how long is waited for one; times in seconds.

    ``wait`` bounds how long a write, or a read that only the primary can answer, waits for
    there to be one. ``interval`` is the time between looks, each of which may take ``deadline``;
    silent for ``patience``, a node is down. At most ``ejected`` of the nodes are left alone for
    failing; the primary is read from only where no replica will do, or with ``reads_primary``.
    ``small``, ``bulk`` and ``analysis`` say how a node is chosen for a kind of query; ``region``
    is where this process runs.
    """

    wait: float = 10.0
    interval: float = 0.25
    deadline: float = 0.5
    patience: float = 1.0
    ejected: float = 0.5
    reads_primary: bool = False
    small: str = "latency"
    bulk: str = "least-connections"
    analysis: str = "least-connections"
    region: str = ""

    def __post_init__(self) -> None:
        for kind in ("small", "bulk", "analysis"):
            how = getattr(self, kind)
            if how not in CHOICES:
                raise ConfigError("routing", kind, str(UnknownName("choice", how, CHOICES)))
        for key in ("wait", "interval", "deadline", "patience"):
            seconds = getattr(self, key)
            if not 0 < seconds < float("inf"):
                raise ConfigError("routing", key, f"{seconds!r} is no time; give seconds")
        if not 0 <= self.ejected <= 1:
            problem = f"{self.ejected!r} is no part of the nodes; give a number from 0 to 1"
            raise ConfigError("routing", "ejected", problem)


def topology_of(shards: object, origin: str) -> Topology:
    """Return the topology that a file's ``[[shards]]`` describe.

    A node is a table or just its conninfo; without a name it goes by its role.

    >>> one = {"name": "eu", "primary": "host=a", "replicas": [{"dsn": "host=b", "region": "x"}]}
    >>> [(node.name, node.region) for node in topology_of([one], "test").nodes]
    [('primary', ''), ('replica1', 'x')]
    """
    if not isinstance(shards, list) or not shards:
        raise ConfigError(origin, "shards", "give each as [[shards]] with a primary")
    try:
        return Topology(tuple(_shard(s, n, origin) for n, s in enumerate(shards)))
    except TopologyError as error:
        raise ConfigError(origin, error.where, error.problem) from None


def _shard(table: object, number: int, origin: str) -> Shard:
    where = f"shards[{number}]"
    given = _table(table, where, _SHARD, origin)
    name = _text(given, "name", where, origin) or ("main" if number == 0 else "")
    if not name:
        raise ConfigError(origin, f"{where}.name", "a shard needs a name")
    if "primary" not in given:
        raise ConfigError(origin, f"{where}.primary", "there is none; give its conninfo")
    if isinstance(given["primary"], list):
        problem = "a shard has one primary; the others are its replicas, or shards of their own"
        raise ConfigError(origin, f"{where}.primary", problem)
    replicas = given.get("replicas", [])
    if not isinstance(replicas, list):
        raise ConfigError(origin, f"{where}.replicas", "give a list of nodes")
    before = "" if number == 0 else f"{name}-"
    primary = _node(given["primary"], f"{where}.primary", f"{before}primary", origin)
    return Shard(
        name,
        primary,
        tuple(
            _node(node, f"{where}.replicas[{place}]", f"{before}replica{place + 1}", origin)
            for place, node in enumerate(replicas)
        ),
    )


def _node(given: object, where: str, name: str, origin: str) -> Node:
    if isinstance(given, str):
        given = {"dsn": given}
    table = _table(given, where, _NODE, origin)
    share = table.get("weight", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise ConfigError(origin, f"{where}.weight", "expected a number")
    try:
        return Node(
            _text(table, "name", where, origin) or name,
            _text(table, "dsn", where, origin),
            _text(table, "direct", where, origin),
            _text(table, "region", where, origin),
            float(share),
        )
    except TopologyError as error:
        raise ConfigError(origin, f"{where}.{error.where}", error.problem) from None


def _table(given: object, where: str, keys: tuple[str, ...], origin: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(origin, where, f"expected a table with {', '.join(keys)}")
    for key in given:
        if key not in keys:
            raise ConfigError(origin, f"{where}.{key}", str(UnknownName("setting", key, keys)))
    return given


def _text(table: Mapping[str, Any], key: str, where: str, origin: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        got = f"a {type(value).__name__}" if key in ("dsn", "direct") else shorten(str(value))
        raise ConfigError(origin, f"{where}.{key}", f"expected str, got {got}")
    return value
