"""Which of several nodes that would all be right answers: by turns, by load, or by latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from toolkit_routing.load import Load

CHOICES = ("latency", "least-connections", "round-robin")
KINDS = ("small", "bulk", "analysis")


def round_robin(loads: Sequence[Load], random: Random, now: float) -> Load:
    """Take turns by weight, evenly spread (nginx's smooth weighted round robin).

    >>> a, b = Load("a", weight=2.0), Load("b")
    >>> "".join(round_robin([a, b], Random(0), 0.0).name for _ in range(6))
    'abaaba'
    """
    total, best = 0.0, loads[0]
    for load in loads:
        load.turn += load.weight
        total += load.weight
        if load.turn > best.turn:
            best = load
    best.turn -= total
    return best


def least_connections(loads: Sequence[Load], random: Random, now: float) -> Load:
    """Take the node with the fewest calls on their way, by weight; of equals any."""
    best, least, equals = loads[0], float("inf"), 0
    for load in loads:
        many = load.inflight / (load.weight or 1e-6)
        if many < least:
            best, least, equals = load, many, 1
        elif many == least:
            equals += 1
            if random.random() * equals < 1:
                best = load
    return best


def latency(loads: Sequence[Load], random: Random, now: float) -> Load:
    """Take the better of two at random: by latency times calls on their way, by weight.

    Two are enough to keep away from a slow node, and, unlike the best of all, do not send
    everybody to the same.
    """
    count = len(loads)
    if count == 1:
        return loads[0]
    at = int(random.random() * count)
    other = int(random.random() * (count - 1))
    one, two = loads[at], loads[other + (other >= at)]
    return one if one.cost(now) <= two.cost(now) else two


_HOW: dict[str, Callable[[Sequence[Load], Random, float], Load]] = {
    "latency": latency,
    "least-connections": least_connections,
    "round-robin": round_robin,
}


@dataclass(frozen=True, slots=True)
class Chooser:
    """How a node is chosen for each kind of query, those of our own region first.

    ``small`` reads by latency and ``bulk`` ones by the calls on their way, which take long and
    vary; a region is left when its nodes have ``full`` calls on their way each. The primary is
    read from only where no replica will do, unless it ``reads_primary``.
    """

    small: str = "latency"
    bulk: str = "least-connections"
    analysis: str = "least-connections"
    region: str = ""
    full: int = 20
    reads_primary: bool = False
    random: Random = field(default_factory=Random, compare=False)

    def __post_init__(self) -> None:
        for kind in KINDS:
            how = getattr(self, kind)
            if how not in CHOICES:
                raise ValueError(f"{kind}: {how!r} is no choice; there is {', '.join(CHOICES)}")

    def pick(self, loads: Sequence[Load], kind: str, now: float) -> Load:
        """Return one of the nodes, of which there is at least one."""
        if len(loads) == 1:
            return loads[0]
        if self.region:
            near = [x for x in loads if x.region == self.region and x.inflight < self.full]
            if near:
                loads = near
            elif free := [x for x in loads if x.inflight < self.full]:
                loads = free
        how: str = getattr(self, kind)
        return _HOW[how](loads, self.random, now)
