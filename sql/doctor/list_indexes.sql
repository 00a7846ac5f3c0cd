-- What: the indexes of a schema, each with all its parts where its table has partitions. A part that
--   belongs to none is one of its own.
-- Params: schema.
-- Columns: name, table, topmost table, is it partitioned, method, is_unique, is_kept (a constraint's,
--   or what replication goes by), keys (NULL: an expression), included columns, which keys are times,
--   what else each key is (operator class, collation, order), expressions and predicate, definition
--   after the table, parts, bytes, scans, last scan, invalid ones, how many are being built,
--   partitions of its table that lack a part.
WITH every AS (
    SELECT i.indexrelid, i.indrelid, c.relname, coalesce(pg_partition_root(i.indexrelid), i.indexrelid)
               AS top,
           i.indisvalid AND i.indisready AND i.indislive AS is_valid, c.relkind,
           CASE WHEN c.relkind = 'i' THEN coalesce(pg_relation_size(c.oid), 0) ELSE 0 END AS bytes,
           pg_stat_get_numscans(c.oid) AS scans, {last_scan} AS scanned_at
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
), building AS (
    SELECT p.relid FROM pg_stat_progress_create_index AS p
    WHERE p.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
    -- a build holds this lock on its table from its beginning to its end; so does a vacuum, and what
    -- is looked at while it runs is judged the next time
    UNION SELECT l.relation FROM pg_locks AS l
    WHERE l.mode = 'ShareUpdateExclusiveLock' AND l.granted AND l.relation IS NOT NULL
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
), tops AS (
    SELECT e.top, count(*) FILTER (WHERE e.relkind = 'i') AS parts, sum(e.bytes)::bigint AS bytes,
           sum(e.scans)::bigint AS scans, max(e.scanned_at) AS scanned_at,
           array_agg(e.relname::text ORDER BY e.relname) FILTER (WHERE NOT e.is_valid) AS broken,
           count(*) FILTER (
               WHERE NOT e.is_valid AND e.indrelid IN (SELECT relid FROM building)) AS building
    FROM every AS e
    GROUP BY e.top
)
SELECT c.relname, t.relname, (SELECT r.relname FROM pg_class AS r WHERE r.oid = coalesce(pg_partition_root(t.oid), t.oid)),
       c.relkind = 'I', m.amname, i.indisunique,
       i.indisprimary OR i.indisexclusion OR i.indisreplident
           OR EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid),
       k.keys, coalesce(k.included, '{{}}'), k.times, k.likeness,
       concat_ws(' ', pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)),
       substring(pg_get_indexdef(c.oid) FROM ' (USING .*)$'), p.parts, p.bytes, p.scans,
       p.scanned_at, coalesce(p.broken, '{{}}'), p.building,
       CASE WHEN c.relkind = 'I' AND NOT i.indisvalid
            THEN (SELECT count(*) FROM pg_partition_tree(t.oid) AS f WHERE f.isleaf) - p.parts
            ELSE 0 END
FROM tops AS p
JOIN pg_index AS i ON i.indexrelid = p.top
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_class AS t ON t.oid = i.indrelid
JOIN pg_am AS m ON m.oid = c.relam
CROSS JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY n.place) FILTER (WHERE n.place <= i.indnkeyatts) AS keys,
           array_agg(a.attname::text ORDER BY n.place) FILTER (WHERE n.place > i.indnkeyatts)
               AS included,
           array_agg(coalesce(a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype), false)
                     ORDER BY n.place) FILTER (WHERE n.place <= i.indnkeyatts) AS times,
           array_agg(concat_ws(' ', i.indclass[n.place - 1], i.indcollation[n.place - 1],
                               i.indoption[n.place - 1])
                     ORDER BY n.place) FILTER (WHERE n.place <= i.indnkeyatts) AS likeness
    FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS n (column_number, place)
    LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = n.column_number
                                   AND n.column_number > 0
) AS k
ORDER BY c.relname
