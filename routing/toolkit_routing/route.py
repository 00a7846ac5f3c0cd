"""Where one statement goes, and why there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from toolkit_routing.choice import Chooser
from toolkit_routing.health import Health, Role
from toolkit_routing.load import Load
from toolkit_routing.positions import NOWHERE, Position

_REPLICA = Role.REPLICA


@dataclass(frozen=True, slots=True)
class Want:
    """What a read must see.

    ``position``: everything up to there; ``max_age``: everything committed that many seconds
    ago. With ``is_strict`` that holds also while no primary is to be found, or it does not answer;
    else what was known of it last is enough then. ``is_primary``: nothing but the primary will
    do. ``wrote_at`` is when was written last: servers that do not tell how far they have come are
    trusted with that ``max_age`` later, and only where it is not strict.
    """

    position: Position | None = None
    max_age: float | None = None
    is_strict: bool = False
    is_primary: bool = False
    kind: str = "small"
    wrote_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Route:
    """A node for one statement; ``confirm`` is the LSN that it must be asked for first."""

    name: str
    reason: str
    confirm: int | None = None


def route(
    health: Health,
    loads: Mapping[str, Load],
    chooser: Chooser,
    want: Want,
    now: float,
    tried: Collection[str] = (),
) -> Route | None:
    """Choose a node for a read; None where none will do, of those not ``tried`` already.

    Replicas before the primary, which is the last resort, unless the chooser reads it, too; nodes
    without weight only where it will not do, either.
    """
    primary = health.primary
    if want.is_primary:
        if primary is None or primary.name in tried:
            return None
        return Route(primary.name, "sees every commit")
    position = want.position
    lsn = None
    if position is not None:
        if position.timeline > health.timeline > 0:  # who we take for the primary was replaced
            return None
        # of one before: nobody can compare, only the primary has all there is
        lsn = position.lsn if position.timeline == health.timeline else NOWHERE
    is_lost = primary is None and not want.is_strict
    since = float("-inf")
    if want.max_age is not None and not is_lost:
        silent_since = None if primary is None or want.is_strict else primary.silent_since
        since = (now if silent_since is None else silent_since) - want.max_age
    settled_at = want.wrote_at + (want.max_age or 0.0)
    is_untold = primary is None or primary.is_untold
    is_enough = is_untold and lsn is None and not want.is_strict and now >= settled_at
    fresh: list[Load] = []
    behind: list[Load] = []
    spare: list[Load] = []
    for name, node in health.nodes.items():
        if name in tried or not node.is_up:
            continue
        load = loads[name]
        if load.ejected_until > now:
            continue
        if node.role is not _REPLICA:
            if chooser.reads_primary:
                fresh.append(load)
        elif node.is_untold:
            if is_enough:
                fresh.append(load)
        elif node.as_of >= since and lsn != NOWHERE:
            if lsn is None or node.replayed >= lsn:
                (fresh if load.weight else spare).append(load)
            elif node.timeline == health.timeline and load.weight:
                behind.append(load)
    if is_lost:
        fresh, spare = _foremost(health, fresh), _foremost(health, spare)
    if fresh:
        chosen = chooser.pick(fresh, want.kind, now)
        return Route(chosen.name, "fresh enough")
    if behind:
        chosen = chooser.pick(behind, want.kind, now)
        return Route(chosen.name, "has to have come far enough", lsn)
    if primary is not None and primary.name not in tried:
        return Route(primary.name, _why(health, loads, lsn, now, tried))
    if spare:
        return Route(chooser.pick(spare, want.kind, now).name, "no other will do")
    return None


def _foremost(health: Health, loads: list[Load]) -> list[Load]:
    """Return who has all that the lost primary was seen to have written, or else the most of it."""
    if len(loads) < 2:
        return loads
    replayed = {load.name: health.nodes[load.name].replayed for load in loads}
    edge = max(replayed.values())
    if health.position is not None:
        edge = min(edge, health.position.lsn)
    return [load for load in loads if replayed[load.name] >= edge]


def _why(
    health: Health,
    loads: Mapping[str, Load],
    lsn: int | None,
    now: float,
    tried: Collection[str],
) -> str:
    """Say why no replica would do."""
    others = [n for n in health.nodes.values() if n is not health.primary]
    if not others:
        return "only node"
    if all(n.is_untold for n in others):
        return "the replicas do not tell how far they have come"
    if lsn == NOWHERE:
        return "the token is of another timeline"
    if all(n.name in tried or not n.is_up for n in others):
        return "no replica is up"
    if all(n.name in tried or not n.is_up or loads[n.name].ejected_until > now for n in others):
        return "no replica answers well"
    return "no replica is fresh enough"
