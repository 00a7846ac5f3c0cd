"""The files of a PgBouncer before the nodes of a topology, as text, with the reasons beside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import ConfigError
from toolkit_routing import Node

Version = tuple[int, int]
OLDEST = (1, 18)
TRACKS = (1, 22)
"""The first version that notices a DEALLOCATE ALL, which psycopg says after a rollback; 1.21
takes the session's statements to be there still, and they fail for everybody."""
OPEN, AUTH_ROLE = "pgbouncer", "pgbouncer_auth"
_DIRECT = 10  # sessions left for who goes past PgBouncer: migrations, maintenance, a shell
_ENTRY = re.compile(r'\s*"((?:[^"]|"")*)"')  # a line of the userlist begins with the role
_STRICTEST = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# what a store's statements rely on, for sessions that a client must not set up itself
CONNECT_QUERY = "SET plan_cache_mode = force_custom_plan; SET jit = off; SET statement_timeout = {}"

LOOKUP_SQL = """\
-- as a superuser, in the database of each node's primary; then give pgbouncer_auth a password
CREATE ROLE pgbouncer_auth LOGIN;
CREATE SCHEMA pgbouncer AUTHORIZATION CURRENT_USER;
CREATE FUNCTION pgbouncer.get_auth(wanted text) RETURNS TABLE (role text, secret text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid
   WHERE rolname = wanted AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
     AND coalesce(rolvaliduntil > pg_catalog.now(), true) $$;
REVOKE ALL ON FUNCTION pgbouncer.get_auth(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer_auth;
GRANT EXECUTE ON FUNCTION pgbouncer.get_auth(text) TO pgbouncer_auth;
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node says: its sessions, how many of them are taken, and the secrets of roles.

    ``secrets`` is None where the role that asked may not see them.
    """

    limit: int
    reserved: int
    others: int
    secrets: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Options:
    """How PgBouncer is to be set up; ``admin`` may use its console, times are in seconds."""

    version: Version = (1, 24)
    listen: str = "127.0.0.1"
    port: int = 6432
    clients: int = 1_000
    admin: str = ""
    userlist: str = "/etc/pgbouncer/userlist.txt"
    statement_timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.version < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            problem = f"is older than {oldest}, the first that a store works through"
            raise ConfigError("pgbouncer", "version", problem)
        for name in ("listen", "admin"):
            if not getattr(self, name).isprintable():
                raise ConfigError("pgbouncer", name, "is more than one line")
        if not self.listen.strip():
            raise ConfigError("pgbouncer", "listen", "is empty; give an address, or * for all")


@dataclass(frozen=True, slots=True)
class Rendered:
    """The two files, SQL to run where roles' secrets could not be read, and what else to do."""

    ini: str
    userlist: str = field(repr=False)
    sql: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of [databases]: what clients ask for, where it leads, and how many sessions it has."""

    name: str
    node: Node
    place: Mapping[str, str]
    size: int
    reserve: int


def version_of(text: str) -> Version:
    """Return a version as it is compared.

    >>> version_of("PgBouncer 1.24.1"), version_of("1.18")
    ((1, 24), (1, 18))
    """
    parts = text.removeprefix("PgBouncer ").split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise ConfigError("pgbouncer", "version", f"{text!r} is not a version such as 1.24")
    return int(parts[0]), int(parts[1])


def roles_of(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Return the roles that log in through the nodes' addresses.

    >>> roles_of([Node("a", "host=x user=ana"), Node("b", "host=y user=ana")])
    ('ana',)
    """
    found = {str(_parts(n.conninfo).get("user") or ""): None for n in nodes}
    return tuple(role for role in found if role)


def render(nodes: Sequence[Node], facts: Mapping[str, Facts], options: Options) -> Rendered:
    """Return the files for a PgBouncer before these nodes; ``facts`` are by their names.

    A node with a ``direct`` address is asked for by the database of its other one; without, that
    is the server's, and it is asked for by its name.
    """
    roles = roles_of(nodes)
    if not roles:
        raise ConfigError("pgbouncer", "dsn", "no node's address names a user; add user=…")
    entries = [_entry(node, facts[node.name], len(roles)) for node in nodes]
    _check_names(entries)
    known = [found.secrets for found in facts.values() if found.secrets is not None]
    secrets = {role: secret for each in known for role, secret in each.items()}
    by_query = len(known) < len(facts)
    remarks = list(_remarks(entries, roles, facts, secrets, by_query, options))
    return Rendered(
        _ini(entries, roles, by_query, options),
        _userlist(secrets, options.admin or roles[0] if by_query else ""),
        LOOKUP_SQL if by_query else "",
        tuple(remarks),
    )


def _entry(node: Node, facts: Facts, roles: int) -> _Entry:
    parts = _parts(node.direct or node.conninfo)
    place = {"host": parts.get("hostaddr") or parts.get("host"), "port": parts.get("port")}
    place["dbname"] = parts.get("dbname") or parts.get("user")
    asked = _parts(node.conninfo)
    name = str((asked.get("dbname") or asked.get("user")) if node.direct else node.name)
    free = facts.limit - facts.reserved - facts.others
    share = (free - min(_DIRECT, free // 4)) // roles
    if share < 2:
        raise ConfigError(
            node.name,
            "max_connections",
            f"of {facts.limit} sessions {facts.reserved} are reserved and {facts.others} taken by "
            f"others: too few are left for {roles} role(s); raise max_connections",
        )
    reserve = min(5, share // 5)
    there = {key: str(value) for key, value in place.items() if value}
    return _Entry(name, node, there, share - reserve, reserve)


def _check_names(entries: Sequence[_Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        if entry.name in seen:
            raise ConfigError(
                entry.node.name,
                "dsn",
                f"asks PgBouncer for database {entry.name!r}, and so does {seen[entry.name]}: a "
                f"replica needs a name of its own, such as dbname={entry.node.name}",
            )
        if entry.name == OPEN:
            raise ConfigError(entry.node.name, "dsn", f"{OPEN!r} is the name of the console")
        seen[entry.name] = entry.node.name


def _remarks(
    entries: Sequence[_Entry],
    roles: Sequence[str],
    facts: Mapping[str, Facts],
    secrets: Mapping[str, str],
    by_query: bool,
    options: Options,
) -> Iterator[str]:
    for entry in entries:
        if not entry.node.direct:
            yield (
                f"{entry.node.name}: clients ask for dbname={entry.name} at PgBouncer's address; "
                "let that be the node's dsn, and what it has now its direct"
            )
    for role in dict.fromkeys([*roles, options.admin or roles[0]]):
        if not by_query and role not in secrets:
            yield (
                f"role {role} has no SCRAM secret on any node, so nobody can log in with it: "
                "SET password_encryption = 'scram-sha-256', and give it a password"
            )
        if len({f.secrets[role] for f in facts.values() if f.secrets and role in f.secrets}) > 1:
            yield (
                f"role {role} has not the same secret on every node: PgBouncer knows one of them; "
                "ALTER ROLE … PASSWORD takes the secret itself, copy it from one to the others"
            )
    if by_query:
        yield (
            "the roles' secrets may be read by superusers only: run the SQL there, or this "
            "command with addresses of a superuser; userlist.txt then needs two lines only, for "
            f"{AUTH_ROLE} and for {options.admin or roles[0]}: for its console PgBouncer looks up "
            "nobody"
        )
    if options.version == (1, 21):
        yield "1.21 loses prepared statements after a rollback, so they are off: take 1.22 or newer"
    files = options.clients + sum(entry.size + entry.reserve for entry in entries) * len(roles)
    yield f"PgBouncer needs {files + 100:,} open files: LimitNOFILE of its service, or ulimit -n"


def _ini(entries: Sequence[_Entry], roles: Sequence[str], by_query: bool, options: Options) -> str:
    lines = ["; written by: toolkit pgbouncer render", "[databases]"]
    lines.append("; the sessions are set up here: what a client set would stay for the next one")
    timeout = round(options.statement_timeout * 1000)
    for entry in entries:
        words = [f"{key}={_quoted(value)}" for key, value in entry.place.items()]
        words.append(f"pool_size={entry.size}")
        words.append(f"connect_query={_quoted(CONNECT_QUERY.format(timeout))}")
        lines.append(f"{_name(entry.name)} = {' '.join(words)}")
    lines += ["", "[pgbouncer]"]
    for name, value, why in _settings(entries, roles, by_query, options):
        lines += [f"; {why}", f"{name} = {value}"]
    return "\n".join([*lines, ""])


def _settings(
    entries: Sequence[_Entry], roles: Sequence[str], by_query: bool, options: Options
) -> Iterator[tuple[str, str, str]]:
    """Yield names, values and reasons; what the version does not know is left out."""
    admin = options.admin or roles[0]
    yield "listen_addr", options.listen, "this machine only, unless clients are elsewhere"
    yield "listen_port", str(options.port), "where clients connect to"
    yield "auth_type", "scram-sha-256", "no password, nor what would do as one, crosses the wire"
    yield "auth_file", options.userlist, "the roles' secrets: let it be PgBouncer's alone, 0600"
    if by_query:
        yield "auth_user", AUTH_ROLE, "asks the servers for secrets that are not in that file"
        query = "SELECT role, secret FROM pgbouncer.get_auth($1)"
        yield "auth_query", query, "a function, so that this role need not see all of pg_authid"
    yield "admin_users", admin, "may use the console: toolkit pgbouncer reload | pause | resume"
    yield "stats_users", admin, "may look: toolkit pgbouncer show"
    yield "pool_mode", "transaction", "a session serves whoever has a transaction to run"
    yield (
        "max_client_conn",
        str(options.clients),
        "a client that waits costs 2 kB",
    )
    least = min(entry.size for entry in entries)
    why = "sessions for a role in a database: what the servers have left, see pool_size above"
    yield "default_pool_size", str(least), why
    reserve = min(entry.reserve for entry in entries)
    yield "reserve_pool_size", str(reserve), "more of them, once a client has waited so long:"
    yield "reserve_pool_timeout", "3", "seconds"
    if options.version >= TRACKS:
        why = "statements are prepared in whichever session runs them; saves the parsing"
        yield "max_prepared_statements", "200", why
    if options.version >= (1, 20):
        why = "what clients set and the server reports is set again in their next session"
        yield "track_extra_parameters", "IntervalStyle, default_transaction_read_only", why
    why = "JDBC sends it; options is not here: what a client sets by it would be lost unsaid"
    yield "ignore_startup_parameters", "extra_float_digits", why
    why = "DISCARD ALL is said between clients in session mode only: no client may rely on it"
    yield "server_reset_query_always", "0", why
    yield "server_login_retry", "1", "the default, 15 s, is 15 s of errors after a short outage"
    yield "server_connect_timeout", "3", "seconds; a server that is gone says nothing"
    why = "seconds a client waits for a session before it is told so; the default is 120"
    yield "query_wait_timeout", "30", why
    yield "tcp_keepalive", "1", "finds peers that went without a word, within 30 + 3 × 5 s:"
    for name, value in (("tcp_keepidle", "30"), ("tcp_keepintvl", "5"), ("tcp_keepcnt", "3")):
        yield name, value, "seconds" if name != "tcp_keepcnt" else "times"
    yield from _encryption(entries)


def _encryption(entries: Sequence[_Entry]) -> Iterator[tuple[str, str, str]]:
    parts = [_parts(e.node.direct or e.node.conninfo) for e in entries]
    modes = [str(each.get("sslmode") or "prefer") for each in parts]
    strictest = max(modes, key=lambda mode: _STRICTEST.index(mode) if mode in _STRICTEST else 0)
    yield "server_tls_sslmode", strictest, "as the servers' own addresses have it"
    if root := next((str(each["sslrootcert"]) for each in parts if each.get("sslrootcert")), ""):
        yield "server_tls_ca_file", root, "who vouches for the servers"


def _userlist(secrets: Mapping[str, str], admin: str) -> str:
    """Return the lines of known secrets; with an ``admin``, those to be filled in by hand, too."""
    lines = []
    for role in (AUTH_ROLE, admin) if admin else ():
        if role not in secrets:
            name = role.replace('"', '""')
            lines.append(f'; "{name}" "its SCRAM secret, or its password"')
    for role, secret in secrets.items():
        lines.append(" ".join('"{}"'.format(text.replace('"', '""')) for text in (role, secret)))
    return "".join(f"{line}\n" for line in lines)


def merged(old: str, new: str, *, replaces: bool = False) -> tuple[str, list[str]]:
    """Return the lines of a userlist with what another has besides; whose secrets differ.

    Those stay as they are in the old one, unless the new one ``replaces`` them.

    >>> merged('"ana" "1"\\n"bob" "2"\\n', '"ana" "3"\\n"eve" "4"\\n')
    ('"ana" "1"\\n"bob" "2"\\n"eve" "4"\\n', ['ana'])
    >>> merged('"ana" "1"\\n', '"ana" "3"\\n', replaces=True)[0]
    '"ana" "3"\\n'
    """
    lines, differ = old.splitlines(), []
    places = {found[1]: n for n, line in enumerate(lines) if (found := _ENTRY.match(line))}
    for line in new.splitlines():
        found = _ENTRY.match(line.removeprefix("; "))
        place = places.get(found[1]) if found else None
        if found is None or place is None:
            lines += [line] if line not in lines else []
        elif not line.startswith(";") and lines[place].strip() != line:
            differ.append(found[1])
            lines[place] = line if replaces else lines[place]
    return "".join(f"{line}\n" for line in lines), differ


def _quoted(value: str) -> str:
    """Return a value of a connection string.

    >>> _quoted("db1"), _quoted("it's")
    ('db1', "'it''s'")
    """
    if value and all(c.isalnum() or c in "._-/:" for c in value):
        return value
    return "'{}'".format(value.replace("'", "''"))


def _name(name: str) -> str:
    if all(c.isalnum() or c in "._-" for c in name):
        return name
    return '"{}"'.format(name.replace('"', '""'))


def _parts(conninfo: str) -> dict[str, Any]:
    from psycopg.conninfo import conninfo_to_dict  # it takes 0.1 s to import

    return conninfo_to_dict(conninfo)
