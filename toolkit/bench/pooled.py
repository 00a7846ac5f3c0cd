"""The case of PgBouncer in the path of a small read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_urlsafe

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from toolkit.bench.ground import Ground
from toolkit.bench.measure import Contender, Missing, Result, Target, Timing, by_turns, compare
from toolkit.bench.reads import OURS, windows
from toolkit.errors import Unavailable
from toolkit.local import debian, ports
from toolkit.local.account import choose_account
from toolkit.local.pgbouncer import ADMIN, PgBouncer, configuration, userlist
from toolkit.local.pgbouncer import version as version_on
from toolkit.pgbouncer import CONNECT_QUERY, TRACKS, version_of
from toolkit.store import Store

_SERIES = "B0"
_MOST_US = 150.0
_POOLED, _BARE, _BARE_POOLED = f"{OURS}, pooled", "psycopg", "psycopg, pooled"


def pooled(ground: Ground) -> Result:
    """Read a thousand points through PgBouncer, and past it."""
    points = ground.sizes.small_read
    texts, arguments = windows(ground, points)
    what = f"PgBouncer in the path of {points:,} points × 6 columns"
    with ExitStack() as stack:
        bare = stack.enter_context(_bare(ground.dsn))
        contenders = [
            Contender(OURS, lambda turn: ground.store.read("candles", _SERIES, *arguments(turn))),
            Contender(_BARE, lambda turn: _rows(bare, texts(turn))),
        ]
        try:
            path = stack.enter_context(_started(ground.dsn))
        except Unavailable as error:
            found = by_turns(contenders, ground.sizes.turns)
            compared = compare(found[OURS], found, {})
            missing = (Missing("PgBouncer", str(error), Target(_MOST_US)),)
            return Result("pgbouncer", what, points, found[OURS], compared, missing=missing)
        store = stack.enter_context(Store(replace(ground.settings, dsn=path.dsn)))
        through = stack.enter_context(_bare(path.dsn))
        contenders += [
            Contender(_POOLED, lambda turn: store.read("candles", _SERIES, *arguments(turn))),
            Contender(_BARE_POOLED, lambda turn: _rows(through, texts(turn))),
        ]
        found = by_turns(contenders, ground.sizes.turns)
    # an older one costs a store its prepared statements as well, which is not the path
    is_tracked = version_of(path.version) >= TRACKS
    with_it, without = (_POOLED, OURS) if is_tracked else (_BARE_POOLED, _BARE)
    one, other = found[with_it], found[without]
    more = Timing("more", one.turns, (one.p50 - other.p50) * 1000, (one.p99 - other.p99) * 1000)
    each = ", ".join(f"{name} {timing.p50:.2f} ms" for name, timing in found.items())
    lines = (f"pgbouncer: {path.version}: {with_it}, beyond {without}; p50: {each}",)
    return Result("pgbouncer", what, points, more, unit="µs", ceiling=_MOST_US, lines=lines)


def _rows(connection: psycopg.Connection, text: str) -> object:
    return connection.cursor(binary=True).execute(text.encode()).fetchall()


def _bare(dsn: str) -> psycopg.Connection:
    return psycopg.connect(dsn, autocommit=True, prepare_threshold=None)


@dataclass(frozen=True, slots=True)
class _Path:
    """Where a PgBouncer leads to a database, and which it is."""

    dsn: str
    version: str


@contextmanager
def _started(dsn: str) -> Iterator[_Path]:
    """Start Debian's PgBouncer before a database, for as long as this lasts."""
    asked = conninfo_to_dict(dsn)
    user, password = asked.get("user"), asked.get("password")
    if not user or not password:
        raise Unavailable("the address has no user and password in it, which PgBouncer needs")
    with tempfile.TemporaryDirectory(prefix="toolkit-bench-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        account = choose_account(home / "run")
        program = debian.pgbouncer(account, home)
        bouncer = PgBouncer(home / "run", home / "run" / "log")
        bouncer.home.mkdir(mode=0o700)
        account.give(bouncer.home)
        port, secret = ports.choose(), token_urlsafe(12)
        entry = (
            f"host={asked.get('hostaddr') or asked.get('host') or '127.0.0.1'} "
            f"port={asked.get('port') or 5432} connect_query='{CONNECT_QUERY.format(30_000)}'"
        )
        text = configuration(bouncer.home, bouncer.log, port, {"*": entry})
        users = userlist({ADMIN: secret, str(user): str(password)})
        bouncer.configure(account, text, users)
        try:
            bouncer.start(program, account, port, secret)
            here = "127.0.0.1"
            through = make_conninfo(dsn, host=here, hostaddr=here, port=port, sslmode="disable")
            yield _Path(through, version_on(port, secret) or "")
        finally:
            bouncer.stop()
