"""Views of how the datasets do: performance_summary, slow_queries and whether that can be told."""

from __future__ import annotations

from alembic import context, op

from toolkit.ddl import literal
from toolkit.operations import execute

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# pg_inherits, not pg_partition_tree: that one locks every partition
PERFORMANCE_SUMMARY = """
CREATE VIEW "{schema}".performance_summary AS
WITH leaf AS (
    SELECT d.id, k.kind, c.oid, c.reltoastrelid
    FROM "{schema}".dataset AS d
    CROSS JOIN LATERAL (
        SELECT 'rows', d.name
        UNION ALL SELECT 'blocks', d.name || '_blocks'
        UNION ALL SELECT 'log', d.name || '_log'
        UNION ALL SELECT 'rollups', r.relation
        FROM "{schema}".rollup AS r WHERE r.dataset_id = d.id
    ) AS k (kind, relation)
    JOIN pg_namespace AS n ON n.nspname = {schema_text}
    JOIN pg_class AS p ON p.relnamespace = n.oid AND p.relname = k.relation
    JOIN LATERAL (
        SELECT p.oid WHERE p.relkind = 'r'
        UNION ALL SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = p.oid
    ) AS t (oid) ON true
    JOIN pg_class AS c ON c.oid = t.oid
), counted AS (
    SELECT l.id, l.kind, pg_total_relation_size(l.oid) AS bytes,
           pg_stat_get_numscans(l.oid) AS table_scans, stored.index_scans,
           stored.fetched, stored.hits,
           pg_stat_get_live_tuples(l.oid) AS live, pg_stat_get_dead_tuples(l.oid) AS dead,
           pg_stat_get_last_vacuum_time(l.oid) AS vacuumed,
           pg_stat_get_last_autovacuum_time(l.oid) AS autovacuumed,
           pg_stat_get_last_analyze_time(l.oid) AS analyzed,
           pg_stat_get_last_autoanalyze_time(l.oid) AS autoanalyzed
    FROM leaf AS l
    CROSS JOIN LATERAL (
        SELECT sum(pg_stat_get_numscans(s.oid)) FILTER (WHERE s.is_index) AS index_scans,
               sum(pg_stat_get_blocks_fetched(s.oid)) AS fetched,
               sum(pg_stat_get_blocks_hit(s.oid)) AS hits
        FROM (
            SELECT l.oid, false
            UNION ALL SELECT i.indexrelid, true FROM pg_index AS i WHERE i.indrelid = l.oid
            UNION ALL SELECT l.reltoastrelid, false WHERE l.reltoastrelid <> 0
            UNION ALL SELECT i.indexrelid, false FROM pg_index AS i
            WHERE i.indrelid = l.reltoastrelid
        ) AS s (oid, is_index)
    ) AS stored
)
SELECT d.name AS dataset,
       count(c.id) FILTER (WHERE c.kind = 'rows') AS partitions,
       coalesce(sum(c.table_scans), 0)::bigint AS table_scans,
       coalesce(sum(c.index_scans), 0)::bigint AS index_scans,
       coalesce(sum(c.fetched - c.hits), 0)::bigint AS reads,
       coalesce(sum(c.hits), 0)::bigint AS hits,
       round(100 * sum(c.hits) / nullif(sum(c.fetched), 0), 1) AS hit_percent,
       coalesce(sum(c.live) FILTER (WHERE c.kind = 'rows'), 0)::bigint AS live_rows,
       coalesce(sum(c.dead) FILTER (WHERE c.kind = 'rows'), 0)::bigint AS dead_rows,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'rows'), 0)::bigint AS row_bytes,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'blocks'), 0)::bigint AS block_bytes,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'rollups'), 0)::bigint AS rollup_bytes,
       coalesce(sum(c.bytes) FILTER (WHERE c.kind = 'log'), 0)::bigint AS log_bytes,
       max(c.vacuumed) FILTER (WHERE c.kind = 'rows') AS last_vacuum,
       max(c.autovacuumed) FILTER (WHERE c.kind = 'rows') AS last_autovacuum,
       min(greatest(c.vacuumed, c.autovacuumed)) FILTER (WHERE c.kind = 'rows') AS oldest_vacuum,
       count(c.id) FILTER (WHERE c.kind = 'rows' AND c.vacuumed IS NULL
                                 AND c.autovacuumed IS NULL) AS never_vacuumed,
       max(c.analyzed) FILTER (WHERE c.kind = 'rows') AS last_analyze,
       max(c.autoanalyzed) FILTER (WHERE c.kind = 'rows') AS last_autoanalyze,
       min(greatest(c.analyzed, c.autoanalyzed)) FILTER (WHERE c.kind = 'rows') AS oldest_analyze,
       count(c.id) FILTER (WHERE c.kind = 'rows' AND c.analyzed IS NULL
                                 AND c.autoanalyzed IS NULL) AS never_analyzed
FROM "{schema}".dataset AS d
LEFT JOIN counted AS c ON c.id = d.id
GROUP BY d.id, d.name
ORDER BY d.name;
COMMENT ON VIEW "{schema}".performance_summary IS
    'a row a dataset, by the statistics of this server: scans and pages (reads from outside its '
    'memory, hits in it) of all its tables; live and dead rows, vacuums and analyzes of the '
    'partitions of its rows: the latest, and of the one that has waited longest';
"""

# With the rights of who asks: pg_stat_statements itself then hides what is not theirs to see.
# Looked for when asked: it may be created, or loaded, at any time.
SLOW_QUERIES = """
CREATE FUNCTION "{schema}".slow_queries_v1() RETURNS TABLE (
    role name, calls bigint, total_ms double precision, mean_ms double precision,
    "rows" bigint, hit_percent numeric, query_id bigint, query text
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $slow$
DECLARE
    place name := (SELECT n.nspname FROM pg_extension AS e
                   JOIN pg_namespace AS n ON n.oid = e.extnamespace
                   WHERE e.extname = 'pg_stat_statements');
BEGIN
    IF place IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($query$
        SELECT pg_get_userbyid(s.userid), sum(s.calls)::bigint, sum(s.total_exec_time),
               sum(s.total_exec_time) / greatest(sum(s.calls), 1), sum(s.rows)::bigint,
               round(100 * sum(s.shared_blks_hit)
                     / nullif(sum(s.shared_blks_hit + s.shared_blks_read), 0), 1),
               s.queryid, min(s.query)
        FROM %I.pg_stat_statements AS s
        LEFT JOIN pg_namespace AS n ON n.nspname = $1
        LEFT JOIN pg_roles AS o ON o.oid = n.nspowner AND NOT o.rolsuper
        WHERE s.dbid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND s.queryid IS NOT NULL
          AND (s.userid = o.oid OR strpos(s.query, $2) > 0 OR s.query ~ $3)
        GROUP BY s.userid, s.queryid
        ORDER BY 3 DESC
    $query$, place) USING {schema_text}::name,
        '"' || replace({schema_text}, '"', '""') || '".',
        CASE WHEN {schema_text} ~ '^[a-z_][a-z0-9_]*$' THEN '[[:<:]]' || {schema_text} || '[.]' END;
EXCEPTION
    WHEN object_not_in_prerequisite_state OR undefined_column OR undefined_table
         OR insufficient_privilege THEN
        RETURN;  -- slow_queries_state says which
END
$slow$;
CREATE VIEW "{schema}".slow_queries AS SELECT * FROM "{schema}".slow_queries_v1();
COMMENT ON VIEW "{schema}".slow_queries IS
    'statements of the owner of this schema, and those that name it, the costliest first, as '
    'pg_stat_statements has them; slow_queries_state says whether, since when, and why not'
"""

SLOW_QUERIES_STATE = """
CREATE FUNCTION "{schema}".slow_queries_state_v1() RETURNS TABLE (
    is_available boolean, reason text, since timestamptz, hidden bigint
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $state$
DECLARE
    place name := (SELECT n.nspname FROM pg_extension AS e
                   JOIN pg_namespace AS n ON n.oid = e.extnamespace
                   WHERE e.extname = 'pg_stat_statements');
BEGIN
    is_available := false;
    IF place IS NULL THEN
        reason := 'this database has no extension pg_stat_statements; as an administrator: '
            'CREATE EXTENSION pg_stat_statements';
        RETURN NEXT;
        RETURN;
    END IF;
    EXECUTE format($query$
        SELECT i.stats_reset,
               (SELECT count(*) FROM %1$I.pg_stat_statements AS s
                WHERE s.queryid IS NULL AND s.total_exec_time >= 0
                  AND s.dbid = (SELECT d.oid FROM pg_database AS d
                                WHERE d.datname = current_database()))
        FROM %1$I.pg_stat_statements_info AS i
    $query$, place) INTO since, hidden;
    is_available := true;
    IF hidden > 0 THEN
        reason := format('%s statements of other roles are hidden; as an administrator: '
            'GRANT pg_read_all_stats TO %I', hidden, current_user);
    END IF;
    RETURN NEXT;
EXCEPTION
    WHEN object_not_in_prerequisite_state THEN
        reason := 'pg_stat_statements is not loaded; add it to shared_preload_libraries, and '
            'start the server anew';
        RETURN NEXT;
    WHEN undefined_column OR undefined_table THEN
        reason := 'pg_stat_statements is of an older server; as its owner: '
            'ALTER EXTENSION pg_stat_statements UPDATE';
        RETURN NEXT;
    WHEN insufficient_privilege THEN
        reason := format('the role %I may not read pg_stat_statements: %s', current_user, SQLERRM);
        RETURN NEXT;
END
$state$;
CREATE VIEW "{schema}".slow_queries_state AS SELECT * FROM "{schema}".slow_queries_state_v1();
COMMENT ON VIEW "{schema}".slow_queries_state IS
    'whether slow_queries can tell anything, and why not; since when statements are counted, and '
    'how many of other roles are hidden from who asks'
"""

DROP = """
DROP VIEW "{schema}".slow_queries_state;
DROP FUNCTION "{schema}".slow_queries_state_v1();
DROP VIEW "{schema}".slow_queries;
DROP FUNCTION "{schema}".slow_queries_v1();
DROP VIEW "{schema}".performance_summary
"""


def upgrade() -> None:
    for part in (PERFORMANCE_SUMMARY, SLOW_QUERIES, SLOW_QUERIES_STATE):
        _run(part)


def downgrade() -> None:
    _run(DROP)


def _run(text: str) -> None:
    schema = context.config.attributes["schema"]
    filled = text.format(schema=schema.replace('"', '""'), schema_text=literal(schema))
    execute(op, filled.strip().rstrip(";"))
