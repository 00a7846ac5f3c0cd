-- What: what tables of a schema take, and what they would take if made anew, by the rows and the mean
--   widths that ANALYZE saw. Each value counts with a multiple of eight bytes, so that rather too
--   little is said to be wasted.
-- Params: schema, least (bytes from which on a table is looked at).
-- Columns: topmost table, name, bytes, bytes it needs (NULL: never analyzed, or its statistics may not
--   be seen).
WITH looked AS (
    SELECT c.oid, c.relname, c.reltuples, c.reloptions, pg_relation_size(c.oid) AS bytes,
           current_setting('block_size')::integer AS page
    FROM pg_class AS c
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
      AND c.relkind = 'r' AND pg_relation_size(c.oid) >= %(least)s
), wide AS (
    SELECT l.oid, sum(ceil(s.avg_width * (1 - s.null_frac) / 8.0) * 8) AS width,
           count(*) AS columns, count(s.avg_width) AS known
    FROM looked AS l
    JOIN pg_attribute AS a ON a.attrelid = l.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_stats AS s ON s.schemaname = %(schema)s AND s.tablename = l.relname
                               AND s.attname = a.attname AND NOT s.inherited
    GROUP BY l.oid
)
SELECT r.relname, l.relname, l.bytes,
       CASE WHEN w.known = w.columns AND l.reltuples >= 0 THEN
           ceil(l.reltuples * (w.width + 28)
                / ((l.page - 24)
                   * coalesce(substring(array_to_string(l.reloptions, ' ')
                                        FROM 'fillfactor=([0-9]+)')::integer, 100) / 100.0))::float8
           * l.page END
FROM looked AS l
JOIN wide AS w ON w.oid = l.oid
JOIN pg_class AS r ON r.oid = coalesce(pg_partition_root(l.oid), l.oid)
ORDER BY l.bytes DESC
