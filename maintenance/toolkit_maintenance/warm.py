"""The warm job: fills the shared cache with what is read often."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.errors import QueryError, ToolkitError, counted
from toolkit.statements import filled
from toolkit.warming import Popular
from toolkit_maintenance.ground import Ground
from toolkit_maintenance.job import Act, Counts, Job, Skip

_MOST = 500  # series and steps that are kept warm


def plan(ground: Ground) -> Iterator[Act | Skip]:
    """Yield what is popular and not in the cache, the most popular first."""
    cache = ground.store.settings.cache
    if not (cache.redis and cache.memory):
        why = "cache.memory is 0" if cache.redis else "cache.redis is not set"
        why = f"nothing is shared with other processes: {why}"
        yield Skip(
            "the shared cache", f"{why}; a service fills its own memory by store.warm()", True
        )
        return
    wanted = set(ground.targets)
    found = [p for p in ground.store.popular(most=_MOST) if not wanted or p.dataset in wanted]
    if not found:
        why = (
            "nothing was read often of late, by a service that has a cache and so counts its reads"
        )
        yield Skip("the shared cache", why, True)
    for popular in found:
        try:
            sql = _cold(ground, popular)
        except ToolkitError as error:
            if not isinstance(error, QueryError):
                raise
            sql = ""  # of a series or step that has gone
        if sql:
            yield _act(ground, popular, sql)


JOB = Job("warm", "fill the shared cache with what is read often", plan)


def _cold(ground: Ground, popular: Popular) -> str:
    """Return the statement that answers a read; empty where the cache holds it or never would."""
    store = ground.store
    found = store.explain(
        popular.dataset, popular.series, popular.start, popular.end, step=popular.step or None
    )
    if found.plan.strategy == "aggregated":  # such answers are not kept
        return ""
    rollup = found.plan.rollup
    level = str(rollup.grid.step) if rollup is not None else "points"
    for series in popular.series:
        levels = store.peek_shared(popular.dataset, series, popular.start, popular.end)
        if any(one.level == level and one.missing for one in levels):
            return filled(found.statement.encode(), found.params)
    return ""


def _act(ground: Ground, popular: Popular, sql: str) -> Act:
    def do() -> Counts:
        columns = ground.store.warm_one(popular)
        return {"reads": 1, "series_warmed": len(popular.series), "rows_read": len(columns)}

    what = f"warm {popular.dataset}, {len(popular.series):,} series, {popular.step or 'points'}"
    why = f"read {counted(round(popular.reads), 'times')} a day of late"
    return Act(f"{what} from {popular.start:%Y-%m-%dT%H:%MZ}", (sql,), "ACCESS SHARE", do, why=why)
