-- What: the schema's tables, and what says whether each needs a vacuum or new statistics: ages with
--   those of its TOAST, dead rows against the limit that is its own, what was written since.
-- Params: schema; table, an oid: only that one; NULL: all.
-- Columns: oid, name, parent, is_parent, bound as PostgreSQL writes it, bytes with indexes, pages,
--   rows, all-visible pages, all-frozen pages (NULL before 18), xid age and its limit, multixact age
--   and its limit, dead rows and the limit, the same of its TOAST, rows inserted since a vacuum,
--   rows changed since an analyze and the limit, live rows, last vacuum, the last that was
--   no autovacuum, last analyze, whether the role may vacuum it and read it.
SELECT c.oid, c.relname, p.relname, c.relkind = 'p', pg_get_expr(c.relpartbound, c.oid),
       -- none of one that is dropped meanwhile
       coalesce(pg_total_relation_size(c.oid), 0),
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::integer,
       greatest(c.reltuples, 0)::float8, c.relallvisible,
       (to_jsonb(c) ->> 'relallfrozen')::integer,
       CASE WHEN c.relkind = 'r' THEN greatest(age(c.relfrozenxid), age(t.relfrozenxid)) ELSE 0 END,
       least(current_setting('vacuum_freeze_table_age')::float8, 0.9 * coalesce(
           (o.said ->> 'autovacuum_freeze_max_age')::float8,
           current_setting('autovacuum_freeze_max_age')::float8)),
       CASE WHEN c.relkind = 'r' THEN greatest(mxid_age(c.relminmxid), mxid_age(t.relminmxid))
            ELSE 0 END,
       least(current_setting('vacuum_multixact_freeze_table_age')::float8, 0.9 * coalesce(
           (o.said ->> 'autovacuum_multixact_freeze_max_age')::float8,
           current_setting('autovacuum_multixact_freeze_max_age')::float8)),
       pg_stat_get_dead_tuples(c.oid),
       least(v.threshold + v.scale * greatest(c.reltuples, 0), v.most),
       coalesce(pg_stat_get_dead_tuples(t.oid), 0),
       least(v.threshold + v.scale * greatest(t.reltuples, 0), v.most),
       pg_stat_get_ins_since_vacuum(c.oid), pg_stat_get_mod_since_analyze(c.oid),
       coalesce((o.said ->> 'autovacuum_analyze_threshold')::float8,
                current_setting('autovacuum_analyze_threshold')::float8)
       + coalesce((o.said ->> 'autovacuum_analyze_scale_factor')::float8,
                  current_setting('autovacuum_analyze_scale_factor')::float8)
         * greatest(c.reltuples, 0),
       pg_stat_get_live_tuples(c.oid),
       greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)),
       pg_stat_get_last_vacuum_time(c.oid),
       greatest(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)),
       has_table_privilege(c.oid, 'SELECT')
       AND (pg_has_role(c.relowner, 'USAGE') OR pg_has_role(d.datdba, 'USAGE')
            OR CASE WHEN current_setting('server_version_num')::integer >= 170000
                    THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE false END)
FROM pg_class AS c
JOIN pg_database AS d ON d.datname = current_database()
LEFT JOIN pg_class AS t ON t.oid = c.reltoastrelid
LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND c.relispartition
LEFT JOIN pg_class AS p ON p.oid = i.inhparent
CROSS JOIN LATERAL (
    SELECT jsonb_object_agg(option_name, option_value) AS said FROM pg_options_to_table(c.reloptions)
) AS o
CROSS JOIN LATERAL (
    SELECT coalesce((o.said ->> 'autovacuum_vacuum_threshold')::float8,
                    current_setting('autovacuum_vacuum_threshold')::float8) AS threshold,
           coalesce((o.said ->> 'autovacuum_vacuum_scale_factor')::float8,
                    current_setting('autovacuum_vacuum_scale_factor')::float8) AS scale,
           -- from 18 on; -1 is none
           nullif(coalesce((o.said ->> 'autovacuum_vacuum_max_threshold')::float8,
                           current_setting('autovacuum_vacuum_max_threshold', true)::float8), -1)
           AS most
) AS v
WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
  AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND (%(table)s::oid IS NULL OR c.oid = %(table)s::oid)
ORDER BY c.relname
