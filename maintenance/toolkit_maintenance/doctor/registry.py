"""The checks there are, in the order in which they are told."""

from __future__ import annotations

from toolkit_maintenance.doctor import (
    indexes,
    queries,
    servers,
    sessions,
    settings,
    shelf,
    tables,
)
from toolkit_maintenance.doctor.check import Check

CHECKS: tuple[Check, ...] = (
    *indexes.CHECKS,
    *tables.CHECKS,
    *queries.CHECKS,
    *sessions.CHECKS,
    *servers.CHECKS,
    *settings.CHECKS,
    *shelf.CHECKS,
)
