"""A database whose sessions begin with other styles of times and texts than the usual ones."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from fix_retention import END, START, retained
from fix_servers import Database

import toolkit
from toolkit_maintenance import runner
from toolkit_maintenance.doctor import examine

STYLES = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_answer_and_no_job_depends_on_the_styles_of_a_database(database: Database) -> None:
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        for key, value in STYLES.items():
            admin.execute(f"ALTER DATABASE {database.name} SET {key} = {value}".encode())
    times = [START + timedelta(hours=n) for n in range(0, 70 * 24, 6)]
    with toolkit.connect(database.dsn) as store:
        store.write("metrics", {"ts": times, "value": [1.0] * len(times)}, series="A")
        store.refresh("metrics")
        before = store.read("metrics", "A", START, END, step="1d").to_pandas()
        assert store.partitions("metrics")[0].span.end
        assert retained(store, rows="30d").status == "done"
        assert store.read("metrics", "A", START, END, step="1d").to_pandas().equals(before)
        assert 0 < len(store.read("metrics", "A", START, END)) < len(times)
        for report in runner.maintain(store, always=True):
            assert report.status != "failed", report
        assert {f.status for f in examine(store).findings} <= {"ok", "warn", "unknown"}
