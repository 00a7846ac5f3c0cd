"""The doctor: checks of a database and its servers, with figures, reasons, and SQL to mend."""

from __future__ import annotations

from toolkit_maintenance.doctor.check import Thresholds
from toolkit_maintenance.doctor.examine import examine
from toolkit_maintenance.doctor.finding import CRIT, OK, UNKNOWN, WARN, Examination, Finding
from toolkit_maintenance.doctor.machine import Machine
from toolkit_maintenance.doctor.snapshots import snapshots

__all__ = [
    "CRIT",
    "OK",
    "UNKNOWN",
    "WARN",
    "Examination",
    "Finding",
    "Machine",
    "Thresholds",
    "examine",
    "snapshots",
]
