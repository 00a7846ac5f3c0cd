"""Metrics of stores and of the server: one list, shown to Prometheus, to alerts and to people."""

from toolkit.metrics.exposing import Metrics, register

__all__ = ["Metrics", "register"]
