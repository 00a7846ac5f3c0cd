"""Benchmarks: each case and its peers by turns in one run, so that ratios mean something."""
