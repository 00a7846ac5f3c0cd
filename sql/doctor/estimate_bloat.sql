-- What: what tables and btree indexes of a schema take, and what they would take if made anew, by
--   the rows and the mean widths that ANALYZE saw. Each value counts with a multiple of eight bytes,
--   so that rather too little is said to be wasted. Partial indexes and those of expressions are left
--   out: for them such estimates are wrong.
-- Params: schema, least (bytes from which on a relation is looked at).
-- Columns: topmost table, name, kind (table, index), bytes, bytes it needs (NULL: never analyzed, or
--   its statistics may not be seen).
WITH looked AS (
    SELECT c.oid, c.relname, c.relkind, c.reltuples, c.reloptions, s.bytes,
           CASE WHEN c.relkind = 'r' THEN c.oid ELSE i.indrelid END AS of, i.indkey, i.indnatts,
           current_setting('block_size')::integer AS page
    FROM pg_class AS c
    LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    CROSS JOIN LATERAL (SELECT pg_relation_size(c.oid) AS bytes) AS s
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
      AND s.bytes >= %(least)s
      AND (c.relkind = 'r'
           OR c.relkind = 'i' AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid
              AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree'))
), wide AS (
    SELECT l.oid, sum(ceil(s.avg_width * (1 - s.null_frac) / 8.0) * 8) AS width,
           count(*) AS columns, count(s.avg_width) AS known
    FROM looked AS l
    JOIN pg_class AS t ON t.oid = l.of
    JOIN pg_attribute AS a ON a.attrelid = l.of AND a.attnum > 0 AND NOT a.attisdropped
                              AND (l.relkind = 'r' OR a.attnum = ANY (l.indkey::smallint[]))
    LEFT JOIN pg_stats AS s ON s.schemaname = %(schema)s AND s.tablename = t.relname
                               AND s.attname = a.attname AND NOT s.inherited
    GROUP BY l.oid
)
SELECT r.relname, l.relname, CASE l.relkind WHEN 'r' THEN 'table' ELSE 'index' END, l.bytes,
       CASE WHEN w.known = w.columns AND l.reltuples >= 0 THEN
           ceil(l.reltuples * (w.width + CASE l.relkind WHEN 'r' THEN 28 ELSE 12 END)
                / ((l.page - CASE l.relkind WHEN 'r' THEN 24 ELSE 40 END)
                   * coalesce(substring(array_to_string(l.reloptions, ' ')
                                        FROM 'fillfactor=(\d+)')::integer,
                              CASE l.relkind WHEN 'r' THEN 100 ELSE 90 END) / 100.0))::float8
           * l.page END
FROM looked AS l
JOIN wide AS w ON w.oid = l.oid
JOIN pg_class AS r ON r.oid = coalesce(pg_partition_root(l.of), l.of)
ORDER BY l.bytes DESC
