"""SQLAlchemy sessions that know replicas: writes to the primary, reads to a node fresh enough."""

from toolkit.sqlalchemy.engines import async_engine_for, engine_for
from toolkit.sqlalchemy.models import Models, models, table_of
from toolkit.sqlalchemy.sessions import (
    RoutingAsyncSession,
    RoutingAsyncSessions,
    RoutingSession,
    RoutingSessions,
    routing_async_session,
    routing_session,
)

__all__ = [
    "Models",
    "RoutingAsyncSession",
    "RoutingAsyncSessions",
    "RoutingSession",
    "RoutingSessions",
    "async_engine_for",
    "engine_for",
    "models",
    "routing_async_session",
    "routing_session",
    "table_of",
]
