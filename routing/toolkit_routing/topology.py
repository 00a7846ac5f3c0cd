"""The servers a store knows, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """One PostgreSQL server: a name for messages and a conninfo that is passed on untouched."""

    name: str
    conninfo: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a node needs a name")

    def __repr__(self) -> str:
        return f"Node({self.name!r})"  # the conninfo may hold a password


@dataclass(frozen=True, slots=True)
class Topology:
    """All nodes of a deployment."""

    primary: Node


@dataclass(frozen=True, slots=True)
class Route:
    """Where one statement runs, and why there."""

    node: Node
    reason: str


def route(topology: Topology) -> Route:
    """Choose the node for a statement: the primary is the only one there is.

    >>> route(Topology(Node("primary", "host=db1"))).node
    Node('primary')
    """
    return Route(topology.primary, "only node")
