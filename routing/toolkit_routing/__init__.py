"""Which node answers: pure decisions over a topology, without a database or a clock."""

from toolkit_routing.topology import Node, Route, Topology, route

__all__ = ["Node", "Route", "Topology", "route"]
