"""Which node answers: pure decisions over a topology, without a database or a clock."""

from toolkit_routing.admission import PRIORITIES, Admission, AdmissionOptions, Refused
from toolkit_routing.choice import CHOICES, KINDS, Chooser
from toolkit_routing.health import Change, Health, Lag, Role, Sample, Standing
from toolkit_routing.load import Ejection, Load
from toolkit_routing.positions import NOWHERE, Position, Token, lsn_text, settled
from toolkit_routing.route import Route, Want, route
from toolkit_routing.topology import Node, Shard, Topology, TopologyError

__all__ = [
    "CHOICES",
    "KINDS",
    "NOWHERE",
    "PRIORITIES",
    "Admission",
    "AdmissionOptions",
    "Change",
    "Chooser",
    "Ejection",
    "Health",
    "Lag",
    "Load",
    "Node",
    "Position",
    "Refused",
    "Role",
    "Route",
    "Sample",
    "Shard",
    "Standing",
    "Token",
    "Topology",
    "TopologyError",
    "Want",
    "lsn_text",
    "route",
    "settled",
]
