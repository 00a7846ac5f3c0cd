"""The servers of a deployment, as they are declared: shards, each a primary and its replicas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


class TopologyError(ValueError):
    """A topology that cannot be; ``where`` names the entry: ``shards[0].replicas[1].name``."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Node:
    """One PostgreSQL server: a name for messages, and how to connect to it.

    Conninfos are passed on untouched and never shown: they may hold a password. ``direct`` leads
    past a pooler that ``conninfo`` leads through. ``weight`` is its share of reads among others;
    a node of weight 0 is read from only where no other will do.
    """

    name: str
    conninfo: str = field(repr=False)
    direct: str = field(default="", repr=False)
    region: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise TopologyError("name", "a node needs a name")
        if not self.conninfo.strip():
            raise TopologyError("dsn", f"node {self.name!r} has none; give a libpq string")
        if not 0 <= self.weight < float("inf"):
            raise TopologyError("weight", f"{self.weight!r} is not a number from 0 on")


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the series: the node declared primary, and those that replicate it.

    Which node really is the primary is found out: it may have moved since this was written.
    """

    name: str
    primary: Node
    replicas: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise TopologyError("name", "a shard needs a name")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The primary and the replicas."""
        return (self.primary, *self.replicas)


@dataclass(frozen=True, slots=True)
class Topology:
    """All shards; ``region`` is where this process runs."""

    shards: tuple[Shard, ...]
    region: str = ""

    def __post_init__(self) -> None:
        if not self.shards:
            raise TopologyError("shards", "there is none; give one with a primary")
        seen: dict[str, str] = {}
        for where, name in self._names():
            if name in seen:
                raise TopologyError(where, f"{name!r} is {seen[name]}, too; give it another name")
            seen[name] = where
        shards = [shard.name for shard in self.shards]
        for number, name in enumerate(shards):
            if name in shards[:number]:
                raise TopologyError(f"shards[{number}].name", f"{name!r} is there twice")

    def _names(self) -> Iterator[tuple[str, str]]:
        for number, shard in enumerate(self.shards):
            yield f"shards[{number}].primary.name", shard.primary.name
            for place, replica in enumerate(shard.replicas):
                yield f"shards[{number}].replicas[{place}].name", replica.name

    @classmethod
    def of(cls, primary: str, *replicas: str) -> Topology:
        """Return one shard of servers that go by their role.

        >>> [node.name for node in Topology.of("host=db1", "host=db2").shards[0].nodes]
        ['primary', 'replica1']
        """
        nodes = tuple(Node(f"replica{n}", dsn) for n, dsn in enumerate(replicas, 1))
        return cls((Shard("main", Node("primary", primary), nodes),))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of all shards."""
        return tuple(node for shard in self.shards for node in shard.nodes)
