"""What a fresh PostgreSQL needs before the toolkit can use it: a role, a database, a schema."""

from __future__ import annotations

from toolkit.errors import Unavailable

ROLE = DATABASE = SCHEMA = "toolkit"


def bootstrap(port: int, admin_password: str, role_password: str) -> None:
    """Make role, database and schema ``toolkit``.

    The role owns the schema and nothing else: no superuser, no CREATE on the database. What
    needs more than that fails here as it would on a managed service.
    """
    import psycopg  # here: only a first start needs it, and it is slow to import
    from psycopg import sql

    def connect(database: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            hostaddr="127.0.0.1",  # a PGHOSTADDR in the environment would win over host
            port=port,
            user="postgres",
            password=admin_password,
            dbname=database,
            sslmode="disable",
            connect_timeout=10,
            autocommit=True,
        )

    role = sql.Identifier(ROLE)
    try:
        with connect("postgres") as connection:
            # the verifier is made here, so that no statement carries the password to the log
            verifier = connection.pgconn.encrypt_password(
                role_password.encode(), ROLE.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(
                sql.SQL(
                    "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}"
                ).format(role, sql.Literal(verifier))
            )
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        with connect(DATABASE) as connection:
            connection.execute(
                sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(SCHEMA), role)
            )
    except psycopg.Error as error:
        raise Unavailable(f"the new PostgreSQL could not be set up: {error}") from error
