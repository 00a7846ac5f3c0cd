"""What is known of a shard's nodes, as looks at them have told it; there is no server."""

from __future__ import annotations

from toolkit_routing import Health, Load, Sample

SYSID = 7_001


def primary(at: float, lsn: int, timeline: int = 1, sysid: int = SYSID) -> Sample:
    """What a look at a primary has found."""
    return Sample(at, at + 0.01, False, sysid, timeline, lsn)


def replica(at: float, lsn: int, timeline: int | None = 1, **said: object) -> Sample:
    """What a look at a replica has found."""
    return Sample(at, at + 0.01, True, SYSID, timeline, lsn, **said)  # type: ignore[arg-type]


def a_shard(replicas: int = 2) -> tuple[Health, dict[str, Load]]:
    """A primary ``a`` and its replicas, all of them there and up to date."""
    names = ["a", *"bcdefgh"[:replicas]]
    health = Health(names)
    health.saw("a", primary(1.0, 1_000))
    for name in names[1:]:
        health.saw(name, replica(1.1, 1_000))
    return health, {n: Load(n) for n in names}
