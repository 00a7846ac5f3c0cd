"""How a Redis or Valkey is set up, asked by hand and once: for who looks after it."""

from __future__ import annotations

from collections.abc import Mapping

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from toolkit.drivers.shelf_wire import ShelfOptions, settings_of
from toolkit.errors import DatabaseError, Unavailable

ASKED = ("maxmemory", "maxmemory-policy", "save", "appendonly", "tcp-keepalive", "timeout")


def read_shelf_settings(url: str, timeout: float = 2.0) -> Mapping[str, str]:
    """Return the server's settings, and ``total_system_memory`` in bytes where it says that.

    Raises Unavailable where it does not answer, DatabaseError where it does not tell: managed
    servers may refuse CONFIG.
    """
    options = ShelfOptions()
    where = settings_of(redis.ConnectionPool, url, options, timeout)[2]
    client = redis.Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        decode_responses=True,
    )
    with client:
        try:
            found = {str(k): str(v) for k, v in client.config_get(*ASKED).items()}
            memory = client.info("memory").get("total_system_memory")
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise Unavailable(f"redis at {where} does not answer: {error}") from error
        except redis.RedisError as error:
            raise DatabaseError(f"redis at {where} does not tell its settings: {error}") from error
    return found | ({"total_system_memory": str(memory)} if memory else {})
