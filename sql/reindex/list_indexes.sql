-- What: the indexes of the schema's tables, and what their size should be by the statistics.
-- Params: schema, least (bytes from which on an index is looked at; 0: parents, too).
-- Columns: oid, name, name of the parent's index, oid of the table, name of the table, name of its
--   parent, the table's bound as PostgreSQL writes it, access method, whether it is one of a parent,
--   whether it is valid, how many partitions have none attached, bytes, pages of the table,
--   fillfactor, rows in it, bytes of a row's values (NULL where a column has no statistics), share
--   of rows with a NULL, distinct keys where they are kept once (NULL where they are not), whether
--   the role may make it anew, whether it has columns only and all rows.
SELECT c.oid, c.relname, pc.relname, t.oid, t.relname, pt.relname,
       pg_get_expr(t.relpartbound, t.oid), am.amname, c.relkind = 'I', i.indisvalid,
       CASE WHEN c.relkind = 'I' THEN
           (SELECT count(*) FROM pg_inherits AS h WHERE h.inhparent = t.oid)
           - (SELECT count(*) FROM pg_inherits AS h WHERE h.inhparent = c.oid)
       ELSE 0 END,
       -- none of one that is dropped meanwhile
       coalesce(pg_relation_size(c.oid), 0),
       coalesce(pg_relation_size(t.oid), 0) / current_setting('block_size')::integer,
       coalesce((SELECT o.option_value FROM pg_options_to_table(c.reloptions) AS o
                 WHERE o.option_name = 'fillfactor')::integer, 90),
       -- as many more as the table has grown by since they were counted
       greatest(c.reltuples, 0) * CASE WHEN t.relpages > 0
           THEN coalesce(pg_relation_size(t.oid), 0)::float8
                / current_setting('block_size')::float8 / t.relpages
           ELSE 1 END,
       k.width, k.nulls,
       CASE WHEN am.amname = 'btree' AND NOT i.indisunique AND i.indnkeyatts = i.indnatts
            THEN k.keys END,
       pg_has_role(c.relowner, 'USAGE')
       OR CASE WHEN current_setting('server_version_num')::integer >= 170000
               THEN has_table_privilege(t.oid, 'MAINTAIN') ELSE false END,
       i.indpred IS NULL AND i.indexprs IS NULL
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_class AS t ON t.oid = i.indrelid
JOIN pg_am AS am ON am.oid = c.relam
LEFT JOIN pg_inherits AS hc ON hc.inhrelid = c.oid
LEFT JOIN pg_class AS pc ON pc.oid = hc.inhparent
LEFT JOIN pg_inherits AS ht ON ht.inhrelid = t.oid AND t.relispartition
LEFT JOIN pg_class AS pt ON pt.oid = ht.inhparent
LEFT JOIN LATERAL (
    SELECT CASE WHEN count(s.avg_width) = count(*)
                THEN sum(s.avg_width * (1 - s.null_frac))::float8 END AS width,
           max(s.null_frac)::float8 AS nulls,
           exp(least(sum(ln(CASE WHEN s.n_distinct > 0 THEN s.n_distinct
                                 ELSE greatest(-s.n_distinct * t.reltuples, 1) END::float8)), 60))
           AS keys
    FROM pg_attribute AS a
    LEFT JOIN pg_attribute AS ta
      ON ta.attrelid = t.oid AND ta.attnum = i.indkey[a.attnum - 1] AND ta.attnum > 0
    LEFT JOIN pg_stats AS s ON s.schemaname = %(schema)s AND NOT s.inherited
      AND s.tablename = CASE WHEN ta.attnum IS NULL THEN c.relname ELSE t.relname END
      AND s.attname = coalesce(ta.attname, a.attname)
    WHERE a.attrelid = c.oid AND a.attnum > 0
) AS k ON c.relkind = 'i'
WHERE t.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND t.relpersistence <> 't'
  AND coalesce(pg_relation_size(c.oid), 0) >= %(least)s
ORDER BY c.relname
