"""Never twice, never missing: reads are right while points move between rows and blocks."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fix_blocks_truth import begin, look_at_all
from fix_blocks_work import Done, finish, read, work
from fix_compressing import rows_and_blocks
from fix_processes import started
from fix_servers import ON_ONE_VERSION, Database
from fix_stores import COLOURS

import toolkit

pytestmark = ON_ONE_VERSION
WRITERS = ("writes same", "writes tide", "writes ebb", "writes grow")


@pytest.mark.parametrize(
    "seconds",
    [25.0, pytest.param(900.0, marks=[pytest.mark.soak, pytest.mark.timeout(1_500)])],
)
def test_no_read_is_wrong_while_all_move_and_write(
    blocking: toolkit.Store,
    database: Database,
    tell: Callable[[str], None],
    seconds: float,
) -> None:
    begin(blocking)
    dsn = database.dsn
    writers = [(work, role, "blocking", dsn, n) for n, role in enumerate(WRITERS)]
    packers = [(work, "packs", colour, dsn, 7 + n) for n, colour in enumerate(COLOURS)]
    others = [(work, "refreshes", "asyncio", dsn, 9)]
    readers = [(read, colour, dsn, 11) for colour in COLOURS]
    with started(*writers, *packers, *others, *readers) as processes:
        begun = told = time.monotonic()
        while (now := time.monotonic()) < begun + seconds:
            if any(p.line.poll() for p in processes):  # one has seen enough that is wrong
                break
            if now > told + 15:
                told = now
                rows, packed = rows_and_blocks(database.dsn)
                tell(f"{now - begun:.0f} of {seconds:.0f} s: {rows} rows, {packed} in blocks")
            time.sleep(0.1)
        for process in processes:
            process.say("stop")
        found: list[Done] = [process.hear() for process in processes]
    wrong = "\n".join(wrong for done in found for wrong in done.wrong)
    assert not wrong, wrong
    total = Done()
    for done in found:
        for what, count in done.counts.items():
            total.add(what, count)
    blocking.refresh("candles")
    look_at_all(blocking)
    finish(blocking)
    look_at_all(blocking)
    rows, packed = rows_and_blocks(database.dsn)
    assert rows == 0
    blocking.decompress("candles")
    assert rows_and_blocks(database.dsn) == (packed, 0)
    look_at_all(blocking)
    print(total.counts)
    wanted = ("cached", "uncached", "points from blocks", "points from rollup", "refused")
    assert all(total.counts.get(what, 0) > 20 for what in (*wanted, "moved", "levels", "batches"))
