"""The cache's second tier: values on a Redis or Valkey that may be out at any time.

Every method is written once, over a :class:`~toolkit.drivers.shelf_wire.Wire` of either colour,
is one round trip, and answers None when Redis cannot be had: that is counted, logged once an
outage, and never raised. A command that timed out may still be done later: whatever is stored
here is stored under the cursor it was made for, so that this does no harm.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from toolkit.drivers.shelf_wire import Wire

_BATCH = 1_000  # keys of one UNLINK
_SCRIPT_KEYS = 4_000  # keys that one script deletes: Lua runs while everybody else waits
_KEY_S = 0.001  # patience for each value asked for
_BYTES_PER_S = 20e6  # and for what is sent
_FOREVER = -1  # what PTTL says of a key that does not end
Command = tuple[bytes | str | int, ...]
_TEXT = (bytes, str)
_MAYBE = (bytes, type(None))
_COUNT = (int, type(None))


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look found: the cursor and the values, in order; None where there is nothing."""

    cursor: bytes | None
    values: list[bytes | None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says about itself; sizes in bytes, ``max_memory`` 0 is without a limit.

    ``is_persistent``: it writes what it holds to disk; None where it does not tell.
    """

    server: str
    version: str
    used_memory: int
    max_memory: int
    policy: str
    keys: int
    is_persistent: bool | None = None


class Script:
    """A Lua script by its text and the hash that the server knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS: the cursor, then one for each item. ARGV: expected, then value and ttl of each item
PUT = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[2 * i - 2], 'PX', ARGV[2 * i - 1])
end
return 1
""")
# KEYS: the cursor, then what goes. ARGV: 1 if a cursor is expected, which, the new one, its ttl.
# allow-oom: a full server must hear of invalidations, too. Deleted first: if that fails, the
# error ends the script, and the cursor stays. pcall: who may not publish may still advance
ADVANCE = Script("""#!lua flags=allow-oom
for i = 2, #KEYS, 1000 do
  redis.call('UNLINK', unpack(KEYS, i, math.min(i + 999, #KEYS)))
end
local expected = false
if ARGV[1] == '1' then expected = ARGV[2] end
if redis.call('GET', KEYS[1]) ~= expected then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
redis.pcall('PUBLISH', KEYS[1] .. ':moved', ARGV[5])
return 1
""")
# pcall: a server that takes no writes, full or a replica, still gives what it has
LOOK_OR_LEASE = Script("""
local values = redis.call('MGET', KEYS[1], unpack(KEYS, 3))
local leased = 0
for i = 2, #values do
  if not values[i] then
    local set = redis.pcall('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
    if type(set) == 'table' and set.ok then leased = 1 end
    break
  end
end
return {leased, values}
""")
RELEASE = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")


def pack(*parts: bytes | str | int) -> bytes:
    """Write a command as Redis reads it.

    >>> pack("PX", b"v", 30)
    b'*3\\r\\n$2\\r\\nPX\\r\\n$1\\r\\nv\\r\\n$2\\r\\n30\\r\\n'
    """
    pieces = [b"*%d\r\n" % len(parts)]
    for part in parts:
        if isinstance(part, str):
            said = part.encode("utf-8", "surrogateescape")  # others' keys may be any bytes
        elif isinstance(part, int):
            said = b"%d" % part
        else:
            said = part
        pieces.append(b"$%d\r\n%b\r\n" % (len(said), said))
    return b"".join(pieces)


class Shelf:
    """Values under string keys, beside a cursor that says how far invalidations have come.

    Keys of one call have to be on one server: a single Redis or Valkey, 7.0 or newer, not a
    cluster. Share it as you share its wire.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __repr__(self) -> str:
        return f"Shelf({self._wire!r})"

    @property
    def is_out(self) -> bool:
        """Whether Redis is out, so that every method answers None at once."""
        return self._wire.ledger.is_open

    @property
    def where(self) -> str:
        """The address of Redis, without what is secret."""
        return self._wire.ledger.where

    @property
    def state(self) -> str:
        """Where Redis is, and why it is out if it is; for sentences."""
        reason = self._wire.ledger.reason
        return f"redis at {self.where}" + (f" is out ({reason})" if reason else "")

    async def look(self, cursor_key: str, keys: Sequence[str]) -> Looked | None:
        """Return the cursor and the values under ``keys``, all of one moment.

        It is one MGET, during which the server serves nobody else: some hundred keys at a time,
        and at most some MB. A key that holds no string reads as None.
        """
        replies = await self._send([("MGET", cursor_key, *keys)], [list], len(keys))
        if replies is None:
            return None
        return self._looked(replies[0], len(keys))

    async def look_or_lease(
        self, cursor_key: str, keys: Sequence[str], lease_key: str, token: str, ms: int
    ) -> tuple[Looked, bool] | None:
        """Look, and if a value is missing try to take the lease, too; True if it is ours now.

        At most some thousand keys. On a server that takes no writes nobody gets a lease.
        """
        reply = await self._run(
            LOOK_OR_LEASE, (cursor_key, lease_key, *keys), (token, ms), len(keys)
        )
        if reply is None:
            return None
        if not isinstance(reply, list) or len(reply) != 2:
            self._strange()
            return None
        looked = self._looked(reply[1], len(keys))
        return None if looked is None else (looked, reply[0] == 1)

    async def put(
        self, cursor_key: str, expected: bytes, items: Sequence[tuple[str, bytes, int]]
    ) -> bool | None:
        """Store (key, value, ttl in ms) of each item, if the cursor still is ``expected``.

        False if it moved. None, too, when the server is full or takes no writes: some of the
        items may be stored then.
        """
        keys = (cursor_key, *(key for key, _, _ in items))
        said = [part for _, value, ttl_ms in items for part in (value, ttl_ms)]
        return self._truth(await self._run(PUT, keys, (expected, *said)))

    async def advance(
        self,
        cursor_key: str,
        expected: bytes | None,
        new: bytes,
        keys: Sequence[str],
        ttl_ms: int,
    ) -> bool | None:
        """Delete ``keys``, then move the cursor from ``expected`` (None: there is none) to ``new``.

        False if the cursor was not ``expected``: the keys are gone all the same. The cursor does
        not move unless every key is gone; above 4,000 keys that takes a second round trip.
        Others who :meth:`listen` hear of it.
        """
        first = max(0, len(keys) - _SCRIPT_KEYS)
        if first and await self.drop(keys[:first]) is None:
            return None
        sender = self._wire.subscriptions.sender
        said = (int(expected is not None), expected or b"", new, ttl_ms, sender)
        return self._truth(await self._run(ADVANCE, (cursor_key, *keys[first:]), said))

    async def listen(self, cursor_key: str, hear: Callable[[], None]) -> None:
        """Call ``hear`` when others advance the cursor: soon after, from any thread, perhaps never.

        Returns at once, whatever Redis does. Call it every now and then: the connection comes
        back by that when it was lost, and only the last ``hear`` of a cursor is called.
        """
        await self._wire.listen(f"{cursor_key}:moved", hear)

    async def lease(self, key: str, token: str, ms: int) -> bool | None:
        """Take the lease for ``ms``, unless somebody has it: everybody takes it for as long.

        What lies there and does not end by then is nobody's lease: it is deleted, and the answer
        is None.
        """
        commands: list[Command] = [("SET", key, token, "NX", "PX", ms), ("PTTL", key)]
        replies = await self._send(commands, [_MAYBE, int])
        if replies is None:
            return None
        taken, left = replies
        if taken is None and (left == _FOREVER or left > ms):
            self._strange()
            await self.drop([key])
            return None
        return bool(taken == b"OK")

    async def release(self, key: str, token: str) -> bool | None:
        """Give the lease back; False if it is not ours any more."""
        return self._truth(await self._run(RELEASE, (key,), (token,)))

    async def drop(self, keys: Sequence[str]) -> int | None:
        """Delete keys; return how many were there."""
        batches = [keys[i : i + _BATCH] for i in range(0, len(keys), _BATCH)]
        commands = [("UNLINK", *batch) for batch in batches]
        replies = await self._send(commands, [int] * len(batches)) if batches else []
        return None if replies is None else sum(replies)

    async def scan(self, pattern: str, count: int = 1_000) -> AsyncGenerator[list[str]]:
        """Yield the keys that match a glob, in pieces; a key may come twice.

        Other clients are served in between. It ends early when Redis is lost: see ``is_out``.
        """
        cursor = b"0"
        while (found := await self.page(cursor, pattern, count)) is not None:
            cursor, keys = found
            if keys:
                yield keys
            if cursor == b"0":
                return

    async def page(
        self, cursor: bytes, pattern: str, count: int = 1_000
    ) -> tuple[bytes, list[str]] | None:
        """Return one piece of a scan and where the next begins; both ends are ``b"0"``."""
        replies = await self._send([("SCAN", cursor, "MATCH", pattern, "COUNT", count)], [list])
        if replies is None:
            return None
        following, keys = replies[0]
        return following, [key.decode("utf-8", "surrogateescape") for key in keys]

    async def measure(self, keys: Sequence[str]) -> list[tuple[int, int]] | None:
        """Return the bytes that each key takes and the ms it has left; (0, -2) if it is gone.

        At most some thousand keys.
        """
        commands: list[Command] = []
        for key in keys:
            commands += [("MEMORY", "USAGE", key), ("PTTL", key)]
        expected = [_COUNT, int] * len(keys)
        replies = await self._send(commands, expected, len(keys)) if keys else []
        if replies is None:
            return None
        return [(size or 0, ms) for size, ms in zip(replies[::2], replies[1::2], strict=True)]

    async def info(self) -> Facts | None:
        """Return what the server says about itself."""
        sections = ("server", "memory", "persistence")
        commands: list[Command] = [*[("INFO", section) for section in sections], ("DBSIZE",)]
        replies = await self._send(commands, [_TEXT] * len(sections) + [int])
        if replies is None:
            return None
        said = {k: v for section in replies[:-1] for k, v in _facts(section)}
        is_valkey = "valkey_version" in said
        return Facts(
            "valkey" if is_valkey else "redis",
            said.get("valkey_version" if is_valkey else "redis_version", ""),
            int(said.get("used_memory", 0)),
            int(said.get("maxmemory", 0)),
            said.get("maxmemory_policy", ""),
            int(replies[-1]),
            await self._is_persistent(said),
        )

    async def _is_persistent(self, said: dict[str, str]) -> bool | None:
        if said.get("aof_enabled") == "1":
            return True
        replies = await self._send([("CONFIG", "GET", "save")], [(list, dict)])  # may be forbidden
        if replies is None:
            return None
        found = replies[0]
        pair = found if isinstance(found, list) else [w for pair in found.items() for w in pair]
        return bool(pair[1]) if len(pair) == 2 else None

    async def close(self) -> None:
        """Close every connection; a later call makes new ones."""
        await self._wire.close()

    def stats(self) -> dict[str, float]:
        """Return plain counters; ``is_out`` is 1 while Redis is out."""
        return self._wire.ledger.stats() | self._wire.subscriptions.stats()

    async def _run(
        self, script: Script, keys: Sequence[str], said: Sequence[bytes | str | int], asked: int = 0
    ) -> Any:
        if self._wire.is_out():  # before anything is packed
            return None
        arguments = (len(keys), *keys, *said)
        request = pack("EVALSHA", script.sha, *arguments)
        replies = await self._wire.exchange(request, 1, self._patience(request, asked))
        if replies is not None and isinstance(replies[0], NoScriptError):
            request = pack("EVAL", script.text, *arguments)
            replies = await self._wire.exchange(request, 1, self._patience(request, asked))
        return None if replies is None or self._is_refused(replies) else replies[0]

    async def _send(
        self, commands: Sequence[Command], expected: Sequence[Any], asked: int = 0
    ) -> list[Any] | None:
        if self._wire.is_out():
            return None
        request = b"".join([pack(*command) for command in commands])
        replies = await self._wire.exchange(request, len(expected), self._patience(request, asked))
        if replies is None or self._is_refused(replies):
            return None
        if not all(map(isinstance, replies, expected)):
            self._strange()
            return None
        return replies

    def _patience(self, request: bytes, asked: int) -> float:
        return self._wire.options.timeout + asked * _KEY_S + len(request) / _BYTES_PER_S

    def _is_refused(self, replies: list[Any]) -> bool:
        for reply in replies:
            if isinstance(reply, ResponseError):
                self._wire.ledger.refused(time.monotonic(), reply)
                return True
        return False

    def _looked(self, reply: Any, keys: int) -> Looked | None:
        if not isinstance(reply, list) or len(reply) != keys + 1:
            self._strange()
            return None
        cursor, *values = reply
        try:
            self._wire.ledger.looked(values)
        except TypeError:
            self._strange()
            return None
        return Looked(cursor, values)

    def _truth(self, reply: Any) -> bool | None:
        return None if reply is None else reply == 1

    def _strange(self) -> None:
        """Note what neither Redis nor we would say: a proxy's reply, or another program's bytes."""
        self._wire.ledger.refused(time.monotonic(), ResponseError("STRANGE"))


def _facts(section: bytes | str) -> list[tuple[str, str]]:
    text = section.decode() if isinstance(section, bytes) else section
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return [(name, value) for name, _, value in pairs]
