"""What every test may use: the server fixtures, and how long hypothesis looks."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "fix_servers",
    "fix_local",
    "fix_plans",
    "fix_stores",
    "fix_sharing",
    "fix_blocks_states",
    "fix_cli",
]

# deadline: a shared machine stalls now and then; too_slow: so do its first examples
_COMMON = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _COMMON, max_examples=20)
settings.register_profile("ci", _COMMON, max_examples=100)
settings.register_profile("soak", _COMMON, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# a test that does not ask for a cache sees the database as it is, and the log cut at once
os.environ.setdefault("TOOLKIT_CACHE_MEMORY", "0")
os.environ.setdefault("TOOLKIT_CACHE_KEEP_LOG", "0")
