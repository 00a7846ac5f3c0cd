"""Which statements are sure to read only."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Sequence,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
    values,
)
from sqlalchemy.orm import aliased

from toolkit.dataset import CANDLES
from toolkit.sqlalchemy import models
from toolkit.sqlalchemy.reads import is_read

KNOWN = models(CANDLES)
CANDLE, SERIES = KNOWN["candles"], KNOWN.Series
TABLE = CANDLE.__table__
BARS = select(CANDLE).join(CANDLE.series).where(SERIES.name == bindparam("name"))
OTHER = aliased(CANDLE)
REMOVED = delete(TABLE).returning(TABLE.c.ts)

READS = [
    BARS,
    BARS.options(),
    select(OTHER).where(exists(BARS.subquery().select())),
    select(func.count()).select_from(BARS.union(BARS).subquery()),
    select(CANDLE.close, func.lag(CANDLE.close).over(order_by=CANDLE.ts)),
    select(literal_column("close * 2")).select_from(TABLE),
    select(CANDLE).where(text("close > 5")),
    func.now(),
    values(TABLE.c.close, name="v").data([(1.0,)]).select(),
    select(CANDLE).from_statement(text("SELECT * FROM toolkit.candles")),
    text("SELECT 1"),
    text("SELECT 'it''s; DELETE' FROM x;"),
    text("WITH x AS (SELECT 1) TABLE x"),
    text("VALUES (1), (2)"),
    text("/* FOR UPDATE */ SELECT $tag$ ; INSERT $tag$ -- DROP"),
    text("SHOW timezone"),
]
WRITES = [
    BARS.with_for_update(of=CANDLE),
    select(OTHER).where(exists(BARS.with_for_update().subquery().select())),
    BARS.union(BARS).with_for_update(),
    select(REMOVED.cte()),
    select(CANDLE).add_cte(update(TABLE).values(close=1.0).cte("u")),
    select(CANDLE).from_statement(REMOVED),
    insert(TABLE).from_select(["ts"], select(TABLE.c.ts)),
    select(Sequence("s").next_value()),
    select(func.toolkit.pg_advisory_lock(1)),
    select(CANDLE).where(func.pg_try_advisory_lock(CANDLE.series_id)),
    select(literal_column("setval('s', 1)")),
    select(CANDLE).where(text("nextval('s') > 5")),
    select(CANDLE).suffix_with("FOR UPDATE"),
    select(CANDLE).with_statement_hint("FOR UPDATE"),
    func.pg_notify("a", "b"),
    text("SELECT 1; DROP TABLE x"),
    text("SELECT * INTO y FROM x"),
    text("SELECT $$a$$; DELETE FROM x; SELECT $$b$$"),
    text("SELECT 'a\\'; DELETE FROM x; --'"),
    text("SELECT /* /* */ 1 */ 2"),
    text("SELECT \"nextval\"('s')"),
    text("SELECT 'not closed"),
    text("SELECT 1 -- it\nFOR UPDATE"),
    text("EXPLAIN ANALYZE SELECT 1"),
    text("CALL x()"),
    text("COPY x FROM STDIN"),
    text("BEGIN"),
    text("SET work_mem = 1"),
    text(""),
    text("-- nothing"),
]


@pytest.mark.parametrize("statement", READS, ids=str)
def test_what_only_reads_is_known_to(statement: Any) -> None:
    assert is_read(statement)


@pytest.mark.parametrize("statement", WRITES, ids=range(len(WRITES)))
def test_what_may_write_is_no_read(statement: Any) -> None:
    assert not is_read(statement)
