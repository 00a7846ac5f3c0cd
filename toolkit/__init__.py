"""Time series on plain PostgreSQL: partitions, rollups that are always right, columnar reads."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from toolkit.aio import AsyncStore
    from toolkit.backfill import BackfillReport
    from toolkit.catalog import Series
    from toolkit.columns import Columns
    from toolkit.config import Settings
    from toolkit.dataset import Aggregate, Column, Dataset, Index
    from toolkit.exporting import ExportReport
    from toolkit.intake import WriteReport
    from toolkit.query import after, bounded
    from toolkit.reader import Explanation
    from toolkit.refresher import RefreshReport
    from toolkit.retaining import Retention
    from toolkit.store import Store
    from toolkit.strategy import Plan
    from toolkit_routing import Node

__version__ = "0.1.0"

_HOME = {
    "Aggregate": "toolkit.dataset",
    "AsyncStore": "toolkit.aio",
    "BackfillReport": "toolkit.backfill",
    "Column": "toolkit.dataset",
    "Columns": "toolkit.columns",
    "Dataset": "toolkit.dataset",
    "Explanation": "toolkit.reader",
    "ExportReport": "toolkit.exporting",
    "Index": "toolkit.dataset",
    "Plan": "toolkit.strategy",
    "RefreshReport": "toolkit.refresher",
    "Retention": "toolkit.retaining",
    "Series": "toolkit.catalog",
    "Settings": "toolkit.config",
    "Store": "toolkit.store",
    "WriteReport": "toolkit.intake",
    "after": "toolkit.query",
    "bounded": "toolkit.query",
}

__all__ = [
    "Aggregate",
    "AsyncStore",
    "BackfillReport",
    "Column",
    "Columns",
    "Dataset",
    "Explanation",
    "ExportReport",
    "Index",
    "Plan",
    "RefreshReport",
    "Retention",
    "Series",
    "Settings",
    "Store",
    "WriteReport",
    "after",
    "asyncpg_pool",
    "bounded",
    "connect",
    "connect_async",
    "resolve",
]


def connect(source: str | os.PathLike[str] | Settings | None = None) -> Store:
    """Return a store on a database; it connects when it is first used.

    ``source`` is a conninfo (``"postgresql://…"`` or ``"host=… dbname=…"``), the path of a
    ``toolkit.toml``, or settings. With nothing: ``$TOOLKIT_CONFIG``, ``./toolkit.toml`` or
    ``$TOOLKIT_DSN``; where none names a database, the local servers, started if they are down
    and migrated if they are fresh (``toolkit down`` stops them).
    """
    from toolkit.store import Store

    return Store(resolve(source))


def connect_async(source: str | os.PathLike[str] | Settings | None = None) -> AsyncStore:
    """Return the asyncio store; takes what :func:`connect` takes."""
    from toolkit.aio import AsyncStore

    return AsyncStore(resolve(source))


def asyncpg_pool(
    source: str | os.PathLike[str] | Settings | Node | None = None, **options: Any
) -> asyncpg.Pool:
    """Return an asyncpg pool for a service's own statements that is safe behind PgBouncer.

    ``source`` is what :func:`connect` takes, or a node: one of ``resolve(…).topology.nodes``. Of
    several servers it is the one that is the primary now, which is found out here, and not again:
    after a failover make the pool anew. Sizes and deadlines are those of the settings; ``options``
    are asyncpg's own and win. What the connections lead to is found out when the first is made:
    statements are prepared where they may be, and no session of the server is changed that others
    use, too.
    """
    from toolkit.drivers.pool_asyncpg import pool
    from toolkit.options import PoolOptions
    from toolkit_routing import Node

    if isinstance(source, Node):
        return pool(source.conninfo, PoolOptions(), **options)
    settings = resolve(source)
    if settings.topology is not None:
        from toolkit.opening import primary_node

        return pool(primary_node(settings).conninfo, settings.pool, **options)
    assert settings.dsn is not None
    return pool(settings.dsn, settings.pool, **options)


def resolve(
    source: str | os.PathLike[str] | Settings | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings :func:`connect` works with, the local servers started if need be.

    ``flags`` are settings by key (``{"database.schema": "bars"}``) that win over all others.
    """
    from toolkit import opening

    return opening.resolve(source, flags)


def __getattr__(name: str) -> Any:
    # numpy and psycopg are loaded when they are needed: importing the package stays cheap
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
