"""Real PostgreSQL, PgBouncer and Valkey servers on this machine: for demo, tests, first steps."""

from toolkit.local.layout import default_root
from toolkit.local.servers import MOST_REPLICAS, LocalServers
from toolkit.local.values import Endpoints, ServerStatus, Status

__all__ = ["MOST_REPLICAS", "Endpoints", "LocalServers", "ServerStatus", "Status", "default_root"]
