"""Roles on a server: what each lacks, and giving it to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from toolkit.drivers.direct import Direct
from toolkit.errors import DatabaseError, QueryError, SchemaError
from toolkit.roles import MAINTAINER, MEMBER, READER, ROLES, TABLE, WRITER, Ground, Right
from toolkit.roles import grants as grants_of
from toolkit.roles import rights as rights_of
from toolkit.statements import compose, raw

_NO_RIGHT = "42501"


@dataclass(frozen=True, slots=True)
class Standing:
    """What one role lacks to be a reader, a writer, a maintainer; ``seems`` is what it is most.

    ``advised`` is what it could do without, and less well.
    """

    name: str
    seems: str
    lacks: Mapping[str, tuple[Right, ...]]
    advised: Mapping[str, tuple[Right, ...]]

    @property
    def roles(self) -> tuple[str, ...]:
        """Return which roles it is wholly."""
        return tuple(r for r in ROLES if not self.lacks[r])


def find_ground(direct: Direct, schema: str) -> tuple[Ground, str]:
    """Return what may be granted, and who asks; needs no right in the schema."""
    params = {"schema": schema}
    found = direct.fetch(compose("roles/find_ground"), params)
    if not found:
        raise SchemaError(
            f"schema {schema!r} of this database is not migrated, or not far enough; "
            "run: toolkit migrate up"
        )
    database, owner, asking = found[0]
    tables = direct.fetch(compose("roles/list_tables"), params)
    return Ground(database, schema, owner, {row[0]: tuple(row[1]) for row in tables}), asking


def standings(direct: Direct, ground: Ground, names: Sequence[str] = ()) -> list[Standing]:
    """Return how roles stand, by default all that may use the schema; QueryError if one is none."""
    if not names:
        rows = direct.fetch(compose("roles/list_roles"), {"schema": ground.schema})
        names = [row[0] for row in rows]
    wanted = {role: rights_of(role, ground) for role in ROLES}
    every = list(dict.fromkeys(right for role in ROLES for right in wanted[role]))
    found = _has(direct, ground, names, every)
    for name in names:
        if name not in found:
            raise QueryError(
                f"there is no role {name!r} on this server; CREATE ROLE makes one, and the toolkit "
                "gives it its rights"
            )
    return [_standing(name, wanted, found[name]) for name in names]


def apply(direct: Direct, ground: Ground, given: Mapping[str, str]) -> list[str]:
    """Give roles what they lack to be what ``given`` says, and return the statements: all or none.

    What is there already is not given again. DatabaseError, and nothing is changed, where who
    asks may not give it.
    """
    statements = []
    for found in standings(direct, ground, list(given)):
        role = given[found.name]
        advised = [r for r in found.advised[role] if r.rule.kind != MEMBER]  # others' to give
        statements += grants_of([*found.lacks[role], *advised], ground, found.name)
    who = f"who may: the owner, {ground.owner}; of a database its owner; of roles an administrator"
    try:
        with direct.transaction():
            for statement in statements:
                direct.execute(raw(statement).as_bytes(None))
            for found in standings(direct, ground, list(given)):
                if found.lacks[given[found.name]]:  # what may not be given is a warning only
                    still = grants_of(found.lacks[given[found.name]], ground, found.name)
                    raise DatabaseError(f"not granted, for want of a right to: {'; '.join(still)}")
    except DatabaseError as error:
        if error.sqlstate == _NO_RIGHT and MAINTAINER in given.values():
            roles = " ".join(f"--{role} {name}" for name, role in given.items())
            raise DatabaseError(
                f"nothing was granted; an administrator has to run: toolkit roles sql {roles}",
                _NO_RIGHT,
            ) from error
        raise DatabaseError(
            f"nothing was granted: {error}; {who}; toolkit roles sql prints the statements",
            error.sqlstate or _NO_RIGHT,
        ) from error
    return statements


def _has(
    direct: Direct, ground: Ground, names: Iterable[str], wanted: Sequence[Right]
) -> dict[str, dict[Right, bool]]:
    params = {
        "schema": ground.schema,
        "roles": list(names),
        "kinds": [r.rule.kind for r in wanted],
        "names": [r.name for r in wanted],
        "privileges": [r.rule.privilege for r in wanted],
        "columns": [r.rule.column for r in wanted],
    }
    rows = direct.fetch(compose("roles/check_rights"), params)
    return {row[0]: dict(zip(wanted, map(bool, row[1]), strict=True)) for row in rows}


def _standing(
    name: str, wanted: Mapping[str, Sequence[Right]], has: Mapping[Right, bool]
) -> Standing:
    lacks = {
        role: tuple(compress(needed, (not has[r] and not r.rule.advised for r in needed)))
        for role, needed in wanted.items()
    }
    advised = {
        role: tuple(r for r in needed if r.rule.advised and not has[r])
        for role, needed in wanted.items()
    }
    # what PUBLIC may tells nothing of a role
    own = [r for r in wanted[WRITER] if r.rule.role == WRITER and r.rule.kind == TABLE]
    if any(has[r] for r in wanted[MAINTAINER] if r.rule.kind == MEMBER and not r.rule.advised):
        seems = MAINTAINER
    else:
        seems = WRITER if any(has[r] for r in own) else READER
    return Standing(name, seems, lacks, advised)
