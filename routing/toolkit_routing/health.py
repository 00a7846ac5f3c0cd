"""What is known of the nodes of a shard: who is the primary, who is how far behind, who is out."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from toolkit_routing.positions import Position

_REMEMBERED = 512  # positions of the primary: two minutes at four a second


class Role(StrEnum):
    """What a node was, when it was last heard of."""

    PRIMARY = "primary"
    REPLICA = "replica"
    UNKNOWN = "unknown"  # never heard of
    FENCED = "fenced"  # takes writes, on a timeline that another has left behind
    FOREIGN = "foreign"  # of another cluster


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look at a node saw; times are seconds of one monotonic clock.

    ``lsn`` is up to where a primary has written, or a replica has replayed; None where a server
    does not tell (Aurora). ``timeline`` None: not known. ``receiver`` says whether a replica is
    connected to what it replicates, ``skew`` by how many seconds its clock is ahead of ours,
    ``is_read_only`` that transactions may not write there unless they ask to, ``is_anew`` that
    the look was the first through its connection: the server may have been restarted.
    """

    asked_at: float
    heard_at: float
    is_replica: bool
    sysid: int | None
    timeline: int | None
    lsn: int | None
    received: int | None = None
    receiver: bool | None = None
    is_paused: bool | None = None
    skew: float = 0.0
    version: int = 0
    is_read_only: bool = False
    is_anew: bool = False


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a replica is behind; None is not known, and what is not known is not fresh.

    ``bytes`` between the primary's last known position and what was replayed. ``seconds``: all
    that was committed longer ago than that has been replayed; it counts the ``age`` of what we
    know, and does not grow while an idle primary has nothing to send.
    """

    bytes: int | None
    seconds: float | None
    age: float
    receiver: bool | None
    is_paused: bool | None


@dataclass(slots=True, eq=False)
class Standing:
    """One node as it stands; written by who looks, read by who chooses.

    ``as_of``: everything committed before it has been replayed. ``replayed`` is a position the
    node is known to have reached, if perhaps on a ``timeline`` that is not the shard's. A node
    that ``is_untold`` does not say how far it has come, one that ``is_read_only`` takes no writes
    though it is the primary.
    """

    name: str
    role: Role = Role.UNKNOWN
    is_up: bool = False
    sample: Sample | None = None
    replayed: int = -1
    timeline: int | None = None
    as_of: float = float("-inf")
    silent_since: float | None = None
    failures: int = 0
    is_untold: bool = False
    is_read_only: bool = False
    why: str = "not heard of yet"

    @property
    def is_known(self) -> bool:
        """Whether it has been heard of, or is known not to answer."""
        return self.sample is not None or self.failures > 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a look has changed: ``cut`` are nodes whose connections lead nowhere any more."""

    cut: tuple[str, ...] = ()
    says: str = ""


_NONE = Change()


@dataclass(slots=True, eq=False)
class Health:
    """The nodes of one shard by name; not locked: one at a time tells it something.

    ``patience`` is how many seconds a node may be silent before it is down. A node that refuses
    a connection is down at once, until it is heard of again.

    >>> health = Health(["a", "b"])
    >>> _ = health.saw("a", Sample(1.0, 1.1, False, 7, 1, 500))
    >>> _ = health.saw("b", Sample(1.2, 1.3, True, 7, 1, 500))
    >>> health.primary.name, health.lag("b", 1.5).seconds, health.lag("b", 1.5).bytes
    ('a', 0.5, 0)
    """

    names: Iterable[str]
    patience: float = 1.5
    nodes: dict[str, Standing] = field(init=False)
    primary: Standing | None = field(default=None, init=False)
    sysid: int | None = field(default=None, init=False)
    timeline: int = field(default=0, init=False)
    clash: tuple[str, ...] = field(default=(), init=False)
    _waiting: dict[str, Sample] = field(default_factory=dict, init=False)
    _written: deque[tuple[float, int]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED), init=False
    )

    def __post_init__(self) -> None:
        self.nodes = {name: Standing(name) for name in self.names}

    @property
    def is_heard(self) -> bool:
        """Whether there is a primary, and it has answered when it was looked at last."""
        return self.primary is not None and self.primary.silent_since is None

    @property
    def position(self) -> Position | None:
        """The last position that the primary was seen at."""
        if self.sysid is None or not self._written:
            return None
        return Position(self.sysid, self.timeline, self._written[-1][1])

    def saw(self, name: str, sample: Sample) -> Change:
        """Take what a look at a node saw."""
        node = self.nodes[name]
        node.sample, node.silent_since, node.failures = sample, None, 0
        declared = next(iter(self.nodes.values()))
        if self.sysid is None and not declared.is_known:
            self._waiting[name] = sample  # whose cluster it is the declared primary says
            return _NONE
        change = self._take(node, sample)
        return self._take_waiting(change) if self._waiting else change

    def _take_waiting(self, change: Change) -> Change:
        waiting, self._waiting = self._waiting, {}
        for name, sample in waiting.items():
            change = _both(change, self._take(self.nodes[name], sample))
        return change

    def _take(self, node: Standing, sample: Sample) -> Change:
        node.timeline, node.is_untold = sample.timeline, sample.lsn is None
        if self.sysid is None and sample.sysid is not None:
            self.sysid = sample.sysid
        if sample.sysid is not None and sample.sysid != self.sysid:
            return self._is_now(node, Role.FOREIGN, "belongs to another cluster")
        if sample.timeline is not None and sample.timeline > self.timeline:
            change = self._begin_timeline(sample.timeline)
        else:
            change = _NONE
        seen = self._saw_replica if sample.is_replica else self._saw_primary
        return _both(change, seen(node, sample))

    def _begin_timeline(self, timeline: int) -> Change:
        """Trust nothing of the timelines before: their positions mean something else."""
        self.timeline = timeline
        self._written.clear()
        cut = []
        for node in self.nodes.values():
            node.as_of, node.replayed = float("-inf"), -1
            if node.role is Role.PRIMARY:
                node.role, node.why = Role.FENCED, f"timeline {timeline} has left it behind"
                node.is_up = False
                cut.append(node.name)
        self.primary, self.clash = None, ()
        return Change(tuple(cut), f"timeline {timeline} has begun")

    def _saw_primary(self, node: Standing, sample: Sample) -> Change:
        if (sample.timeline or self.timeline) < self.timeline:
            why = f"takes writes on timeline {sample.timeline}; the newest is {self.timeline}"
            return self._is_now(node, Role.FENCED, why)
        rival, change = self.primary, _NONE
        if rival is not None and rival is not node:
            if sample.timeline is not None or node.role is not Role.REPLICA:
                self.clash = (rival.name, node.name)
                return self._is_now(node, Role.FENCED, f"takes writes, as {rival.name} does")
            # without timelines: who began to take writes while we looked is the newer one
            change = self._is_now(rival, Role.FENCED, f"{node.name} takes the writes now")
        change = _both(change, self._is_now(node, Role.PRIMARY, ""))
        node.is_read_only = sample.is_read_only
        if self.clash and node.name == self.clash[0]:
            other = self.nodes[self.clash[1]]
            if other.role is not Role.FENCED:
                self.clash = ()
        self.primary = node
        if sample.lsn is not None:
            self._written.append((sample.asked_at, sample.lsn))
            node.replayed = sample.lsn
        node.as_of = float("inf")
        return change

    def _saw_replica(self, node: Standing, sample: Sample) -> Change:
        was_primary = node.role in (Role.PRIMARY, Role.FENCED)
        change = self._is_now(node, Role.REPLICA, "")
        if was_primary or sample.is_anew:  # it may begin before where it was
            node.as_of, node.replayed = float("-inf"), -1
        if was_primary:
            if self.primary is node:
                self.primary = None
            change = Change((node.name,), f"{node.name} is a replica now")
        if sample.lsn is None:
            node.as_of = float("-inf")
        elif sample.timeline == self.timeline:
            self._reached(node, sample.lsn)
        return change

    def _is_now(self, node: Standing, role: Role, why: str) -> Change:
        was, was_up = node.role, node.is_up
        node.role, node.why = role, why
        node.is_up = role in (Role.PRIMARY, Role.REPLICA)
        if was is role and was_up == node.is_up:
            return _NONE
        has_left = was is Role.PRIMARY and role is not Role.PRIMARY
        if self.primary is node and role is not Role.PRIMARY:
            self.primary = None
        return Change((node.name,) if has_left else (), f"{node.name}: {role.value} {why}".rstrip())

    def replayed(self, name: str, lsn: int, timeline: int | None = None) -> None:
        """Hear that a replica has been found at a position; while it is up it never goes back."""
        node = self.nodes[name]
        is_ours = (timeline or node.timeline) == self.timeline
        if node.is_up and node.role is Role.REPLICA and is_ours:
            self._reached(node, lsn)

    def _reached(self, node: Standing, lsn: int) -> None:
        node.replayed = max(node.replayed, lsn)
        written = self._written
        at = bisect_right(written, node.replayed, key=lambda w: w[1])
        if at:
            node.as_of = max(node.as_of, written[at - 1][0])

    def full(self, name: str, asked_at: float, now: float, why: str) -> Change:
        """Hear that a node has no connection left: it is there, and those that it has may work."""
        node = self.nodes[name]
        if not node.is_up:
            return self.silent(name, asked_at, now, why)
        node.silent_since, node.failures = None, 0
        return _NONE

    def silent(self, name: str, asked_at: float, now: float, why: str) -> Change:
        """Hear that a node did not answer in time: down, once that has gone on for a while."""
        node = self.nodes[name]
        node.failures += 1
        if node.silent_since is None:
            node.silent_since = asked_at
        if node.failures < 2 or now - node.silent_since < self.patience:
            node.why = why if not node.is_up else node.why
            return self._take_waiting(_NONE) if self._waiting else _NONE
        return self._down(node, why)

    def refused(self, name: str, now: float, why: str, began: float | None = None) -> Change:
        """Hear that a node cannot be connected to, or has broken a connection: it is down.

        Not if it was heard of after the call in question ``began``: that one is about the past.
        """
        node = self.nodes[name]
        if began is not None and node.is_up and node.sample and node.sample.asked_at > began:
            return _NONE
        node.failures += 1
        if node.silent_since is None:
            node.silent_since = now
        return self._down(node, why)

    def read_only(self, name: str, began: float) -> Change:
        """Hear that a node which was the primary has refused a write in a call that ``began``."""
        node = self.nodes[name]
        if self.primary is not node or node.is_read_only:
            return _NONE
        if node.sample is not None and node.sample.asked_at > began:
            return _NONE
        node.is_read_only = True
        return Change((name,), f"{name} takes no writes any more")

    def _down(self, node: Standing, why: str) -> Change:
        was_up = node.is_up
        node.is_up, node.why = False, why
        # one that is started again may begin before where it was
        node.as_of, node.replayed = float("-inf"), -1
        if self.primary is node:
            self.primary = None
        change = Change((node.name,), f"{node.name} is down: {why}") if was_up else _NONE
        return self._take_waiting(change) if self._waiting else change

    def lag(self, name: str, now: float) -> Lag:
        """Return how far a node is behind, as far as that is known."""
        node = self.nodes[name]
        sample = node.sample
        age = now - sample.heard_at if sample is not None else float("inf")
        receiver, is_paused = (sample.receiver, sample.is_paused) if sample else (None, None)
        if node.role is Role.PRIMARY:
            return Lag(0, 0.0, age, None, None)
        behind = None
        if self._written and node.replayed >= 0:
            behind = max(0, self._written[-1][1] - node.replayed)
        seconds = now - node.as_of if node.as_of > float("-inf") else None
        return Lag(behind, seconds, age, receiver, is_paused)


def _both(first: Change, then: Change) -> Change:
    if first is _NONE:
        return then
    says = "; ".join(s for s in (first.says, then.says) if s)
    return Change((*first.cut, *then.cut), says)
