"""The usual ways to remember a read: functions decorated by dogpile.cache, aiocache and cashews.

Each returns the DataFrame of a range of points, kept under its arguments: in memory as the object
itself (cashews: a copy), in Redis as a pickle. None of them hears of a write.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from toolkit.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd

DOGPILE, AIOCACHE, CASHEWS = "dogpile.cache", "aiocache", "cashews"
_KEPT_S = 3_600
Load = Callable[[str, str], "pd.DataFrame"]
Awaited = Callable[[str, str], Awaitable["pd.DataFrame"]]


@contextmanager
def by_dogpile(load: Load, redis_url: str | None = None) -> Iterator[Any]:
    """Decorate a function; its ``invalidate(start, end)`` makes the next call miss."""
    region = _package("dogpile.cache").make_region()
    if redis_url is None:
        region.configure("dogpile.cache.memory", expiration_time=_KEPT_S)
    else:
        told = {"url": redis_url, "redis_expiration_time": _KEPT_S}
        region.configure("dogpile.cache.redis", expiration_time=_KEPT_S, arguments=told)

    @region.cache_on_arguments()  # type: ignore[untyped-decorator]  # dogpile has no types
    def read(start: str, end: str) -> pd.DataFrame:
        return load(start, end)

    with _old_names():
        try:
            yield read
        finally:
            if redis_url is not None:
                region.backend.reader_client.close()


@asynccontextmanager
async def by_aiocache(load: Load, redis_url: str | None = None) -> AsyncIterator[Awaited]:
    """Decorate a coroutine."""
    package = _package("aiocache")
    where: dict[str, Any] = {"cache": package.SimpleMemoryCache}
    if redis_url is not None:
        url = urlsplit(redis_url)
        where = {
            "cache": package.RedisCache,
            "serializer": import_module("aiocache.serializers").PickleSerializer(),
            "endpoint": url.hostname,
            "port": url.port,
            "password": url.password,
        }

    @package.cached(ttl=_KEPT_S, **where)  # type: ignore[untyped-decorator]  # nor has aiocache
    async def read(start: str, end: str) -> pd.DataFrame:
        return load(start, end)

    with _old_names():
        try:
            yield read
        finally:
            await read.cache.close()


@asynccontextmanager
async def by_cashews(load: Load, redis_url: str | None = None) -> AsyncIterator[Awaited]:
    """Decorate a coroutine."""
    cache = _package("cashews").Cache()
    cache.setup(redis_url or "mem://")

    @cache(ttl=_KEPT_S, key="bench:{start}:{end}")  # type: ignore[untyped-decorator]  # as above
    async def read(start: str, end: str) -> pd.DataFrame:
        return load(start, end)

    with _old_names():
        try:
            yield read
        finally:
            await cache.close()


@contextmanager
def _old_names() -> Iterator[None]:
    """Let them call what redis-py has since renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise MissingExtra(name, "bench", "the benchmarks") from None
