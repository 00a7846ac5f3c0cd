"""Maintenance jobs: each a small, idempotent run that returns a report of counts."""
