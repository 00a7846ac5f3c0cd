"""What is told of others' statements: no literals, for one may be a password."""

from __future__ import annotations

from dataclasses import asdict

import psycopg
import pytest
from fix_servers import Database

import toolkit
from toolkit.drivers.direct import Direct, Patience, command_of, described
from toolkit.errors import Busy
from toolkit.options import PoolOptions
from toolkit.statements import compose
from toolkit_maintenance.doctor import Thresholds, examine

SECRET = "hunter2"


def test_a_password_in_anothers_statement_is_not_told(database: Database) -> None:
    with (
        psycopg.connect(database.dsn, application_name="forgotten") as other,
        Direct(database.dsn, PoolOptions()) as session,
        toolkit.connect(database.dsn) as store,
    ):
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("LOCK TABLE toolkit.candles IN SHARE UPDATE EXCLUSIVE MODE")
        table = session.fetch(b"SELECT 'toolkit.candles'::regclass::oid")[0][0]
        other.execute(f"ALTER ROLE CURRENT_USER PASSWORD '{SECRET}'".encode())
        with pytest.raises(Busy) as caught:
            session.patiently([b"ALTER TABLE toolkit.candles ADD x int"], "it", Patience(0.2, 1))
        told = [str(caught.value), *session.holders(table)]
        horizon = session.fetch(compose("vacuum/find_horizon"), {"table": None})
        told += [described(horizon[0][1:8])]
        seen = examine(store, ["long-*"], limits=Thresholds(transaction_s=1e9, idle_s=0.0))
        told += [str([asdict(f) for f in seen.findings])]
        other.rollback()
    for text in told:
        assert "forgotten" in text
        assert "ALTER ROLE …" in text
        assert SECRET not in text
        assert "PASSWORD" not in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("  UPDATE candles SET close = 1", "UPDATE candles …"),
        ("autovacuum: VACUUM toolkit.candles", "autovacuum: VACUUM toolkit …"),
        ("SELECT E'hunter2'", "SELECT …"),
        ("SELECT U&'hunter2'", "SELECT …"),
        ("DO $$ 'hunter2' $$", "DO …"),
        ("/* hunter2 */ SELECT 1", None),
        ("<insufficient privilege>", None),
        ("", None),
        (None, None),
    ],
)
def test_of_a_statement_its_first_words_are_told(text: str | None, told: str | None) -> None:
    assert command_of(text) == told
