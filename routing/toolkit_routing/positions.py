"""How far a server's log has come, and the tokens that promise a reader as much."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

PAGE = 8192
NOWHERE = -1
"""An LSN that is not known: no replica is sure to have come there, the primary has."""
_TOKEN = re.compile(
    r"([^=,]+)=([0-9a-f]{1,16})-([0-9]{1,10})-([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})"
)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log of one cluster, on one of its timelines.

    LSNs of two timelines do not compare: after a failover the same number means other records.
    """

    sysid: int
    timeline: int
    lsn: int

    def __str__(self) -> str:
        return f"{self.sysid:x}-{self.timeline}-{lsn_text(self.lsn)}"


@dataclass(frozen=True, slots=True)
class Token:
    """What a reader must see: a position for each shard that was written to.

    Its text is for headers and cookies: ASCII without spaces, no secrets.

    >>> token = Token({"main": Position(0x6B1F00D, 2, 0x16B3748)})
    >>> str(token), Token.parse(str(token)) == token
    ('main=6b1f00d-2-0/16B3748', True)
    >>> odd = Token({"a=b, ü": Position(1, 2, 3)})
    >>> str(odd), Token.parse(str(odd)) == odd
    ('a%3Db%2C%20%C3%BC=1-2-0/3', True)
    """

    positions: Mapping[str, Position]

    def __str__(self) -> str:
        return ",".join(f"{quote(name, '')}={at}" for name, at in sorted(self.positions.items()))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Return the token that a text stands for; ValueError if it is none."""
        found = {}
        for part in text.split(",") if text else ():
            match = _TOKEN.fullmatch(part)
            if match is None:
                raise ValueError(f"{part[:80]!r} is no token; give what store.token() returned")
            name, sysid, timeline, high, low = match.groups()
            lsn = (int(high, 16) << 32) | int(low, 16)
            found[unquote(name)] = Position(int(sysid, 16), int(timeline), lsn)
        return cls(found)


def lsn_text(lsn: int) -> str:
    """Return an LSN as PostgreSQL writes it.

    >>> lsn_text(0x1_0000_00FF)
    '1/FF'
    """
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def settled(lsn: int, segment: int = 16 * 1024 * 1024) -> int:
    """Return the end of the last record before an insert position.

    Just past a page's header nothing has been written yet, and a standby does not get there
    before the next record comes, which may be seconds: the header (24 bytes, 40 where a segment
    begins) is taken off.

    >>> settled(PAGE + 24) == PAGE, settled(PAGE + 25) == PAGE + 25
    (True, True)
    """
    if lsn % segment == 40:
        return lsn - 40
    return lsn - 24 if lsn % PAGE == 24 and lsn % segment != 24 else lsn
