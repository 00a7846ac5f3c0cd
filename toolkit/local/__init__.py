"""Real PostgreSQL and Valkey servers on this machine, for the demo, tests and first steps."""

from toolkit.local.layout import default_root
from toolkit.local.servers import LocalServers
from toolkit.local.values import Endpoints, ServerStatus, Status

__all__ = ["Endpoints", "LocalServers", "ServerStatus", "Status", "default_root"]
