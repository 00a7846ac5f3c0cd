-- What: the statements of this database that take most time in all, as pg_stat_statements has
--   counted them; those of other roles have no id for a role without pg_read_all_stats.
-- Columns: id, calls, milliseconds in all, rows, blocks found in memory, blocks read, beginning of it,
--   up to the first literal: those of an ALTER ROLE … PASSWORD are not taken out by the server.
SELECT s.queryid, sum(s.calls)::bigint, sum(s.total_exec_time)::float8, sum(s.rows)::bigint,
       sum(s.shared_blks_hit)::bigint, sum(s.shared_blks_read)::bigint,
       left(min(regexp_replace(regexp_replace(s.query, '(''|[$][^0-9]).*', '…'), '[[:space:]]+', ' ', 'g')),
            300)
FROM {schema}.pg_stat_statements AS s
WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND s.queryid IS NOT NULL
GROUP BY s.queryid
ORDER BY sum(s.total_exec_time) DESC
LIMIT 500
