"""What every test may use: the server fixtures, and how long hypothesis looks."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "fix_servers",
    "fix_cache_servers",
    "fix_local",
    "fix_replicas",
    "fix_pgbouncer",
    "fix_prometheus",
    "fix_plans",
    "fix_stores",
    "fix_sharing",
    "fix_blocks_states",
    "fix_cli",
    "fix_doctor",
    "fix_contract",
    "fix_jobs",
    "fix_roles",
    "fix_deploy",
]

# deadline: a shared machine stalls now and then; too_slow: so do its first examples
_COMMON = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _COMMON, max_examples=20)
settings.register_profile("ci", _COMMON, max_examples=50)
settings.register_profile("soak", _COMMON, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# a test that does not ask for a cache sees the database as it is, and the log cut at once
os.environ.setdefault("TOOLKIT_CACHE_MEMORY", "0")
os.environ.setdefault("TOOLKIT_CACHE_KEEP_LOG", "0")
# most tests need one connection of each store, and who needs more asks for them
os.environ.setdefault("TOOLKIT_POOL_MIN_SIZE", "0")


# what the SQL of an older server has no part in: who starts it, who asks it, what is said of it
_NOT_ITS_SQL = re.compile(
    r"/test_(asyncpg|cache_|cli_|deadlines|demo|local|packaging|pgbouncer|push|read_many|reading_in"
    r"|routing_roads|sqlalchemy|topologies|waits)"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Beside the newest server ask an older one each test once that is about its SQL.

    What is about connections asks it all. The long forms of `./run soak` do, too.
    """
    from fix_servers import WHEEL, chosen_versions  # here: pytest rewrites its assertions first

    kept, left_out, asked = [], [], set[str]()
    is_long = "soak" in config.option.markexpr and "not soak" not in config.option.markexpr
    is_alone = len(chosen_versions()) == 1
    for item in items:
        given = set(re.findall(r"[a-z0-9]+", item.name.partition("[")[2]))
        is_older = any(part.startswith("pg") and part != f"pg{WHEEL}" for part in given)
        if is_older and not (is_long or is_alone) and "connections" not in item.nodeid:
            test = item.nodeid.partition("[")[0]
            if given & {"asyncio", "redis7"} or test in asked or _NOT_ITS_SQL.search(test):
                left_out.append(item)
                continue
            asked.add(test)
        kept.append(item)
    config.hook.pytest_deselected(items=left_out)
    # first: what two workers share near the end, each would build for itself
    items[:] = sorted(kept, key=lambda item: "/plans/" not in item.nodeid)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported and collected: it stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tell(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], None]:
    """Says how far the long form of a proof is, past pytest's capture; the short form is silent."""
    is_long = request.node.get_closest_marker("soak") is not None

    def tell(text: str) -> None:
        if is_long:
            with capsys.disabled():
                print(f"\n{text}", end="", flush=True)

    return tell
