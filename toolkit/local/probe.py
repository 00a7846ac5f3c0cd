"""Whether a PostgreSQL that runs takes connections, asked by making one."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.local.administration import DATABASE, ROLE

_CONNECT_S = 3
# what a server says that was started and is not there yet, or is going (SQLSTATE 57P03 and
# 57P01); the servers run with LC_ALL=C, so it is English
_PASSING = ("starting up", "recovery", "not yet accepting", "shutting down", "terminating")
_FULL = ("too many clients", "too many connections", "remaining connection slots")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no connection was to be had; ``passes`` says that waiting may help."""

    problem: str
    passes: bool


def refusal(port: int, password: str) -> Refusal | None:
    """Connect as the role ``toolkit`` and ask for 1; None where that works.

    A server whose connections are all taken is up: that is None, too.
    """
    import psycopg  # here: slow to import, and whoever asks goes on to connect

    try:
        with psycopg.connect(
            host="127.0.0.1",
            hostaddr="127.0.0.1",  # a PGHOSTADDR in the environment would win over host
            port=port,
            user=ROLE,
            password=password,
            dbname=DATABASE,
            sslmode="disable",
            target_session_attrs="any",
            connect_timeout=_CONNECT_S,
            autocommit=True,
        ) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return read_refusal(str(error).strip())
    return None


def read_refusal(said: str) -> Refusal | None:
    """Tell from an error's text what kind it is.

    >>> read_refusal("FATAL:  the database system is shutting down").passes
    True
    >>> read_refusal("connection refused").passes
    True
    >>> read_refusal('FATAL:  password authentication failed for user "toolkit"').passes
    False
    >>> read_refusal("FATAL:  sorry, too many clients already") is None
    True
    """
    if any(words in said for words in _FULL):
        return None
    # without a FATAL the server said nothing: it hung up, or was not there
    return Refusal(said, "FATAL:" not in said or any(words in said for words in _PASSING))
