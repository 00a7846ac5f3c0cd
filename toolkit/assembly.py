"""Settings to the roads of a store: a driver for each node, and what is shared with others."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from toolkit.cluster import Cluster
from toolkit.config import Settings
from toolkit.drivers import NodeDriver
from toolkit.options import PoolOptions
from toolkit.primary import PrimaryDriver
from toolkit.roads import Roads

if TYPE_CHECKING:
    from toolkit.drivers.shelf import Shelf


def opened(
    settings: Settings,
    kind: Callable[[str, PoolOptions, str, str, bool], NodeDriver],
    shelf: Shelf | None,
) -> Roads:
    """Return the roads of a store over drivers of a kind: one for each node it is told of."""
    if settings.topology is None:
        assert settings.dsn is not None
        return Roads(kind(settings.dsn, settings.pool, "primary", "", False), settings, shelf)
    (shard,) = settings.topology.shards
    drivers = {n.name: kind(n.conninfo, settings.pool, n.name, n.direct, True) for n in shard.nodes}
    cluster = Cluster(shard, drivers, settings.pool, settings.routing)
    return Roads(PrimaryDriver(cluster), settings, shelf, cluster)


def shelf_of(settings: Settings, module: str, wire: str) -> Shelf | None:
    """Return what a store shares with others over a wire of ``toolkit.drivers``; None: nothing."""
    options = settings.cache
    if not options.redis or not options.memory:
        return None
    from toolkit.drivers.shelf import Shelf  # redis-py takes 0.13 s to import
    from toolkit.drivers.shelf_wire import ShelfOptions

    kind = getattr(import_module(f"toolkit.drivers.{module}"), wire)
    origin = settings.origins.get("cache.redis", "settings")
    return Shelf(kind(options.redis, ShelfOptions(options.redis_timeout, origin=origin)))
