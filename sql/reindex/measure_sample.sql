-- What: the indexes of a table beside those of the sample that are made alike.
-- Params: table (an oid).
-- Columns: oid, bytes of the sample's.
SELECT o.indexrelid, min(pg_relation_size(s.indexrelid))
FROM (SELECT i.*, c.relam, ARRAY(
          SELECT pg_get_indexdef(i.indexrelid, k, false) FROM generate_series(1, i.indnatts) AS k
          ORDER BY k) AS made_of
      FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
      WHERE i.indrelid = %(table)s::oid) AS o
JOIN (SELECT i.*, c.relam, ARRAY(
          SELECT pg_get_indexdef(i.indexrelid, k, false) FROM generate_series(1, i.indnatts) AS k
          ORDER BY k) AS made_of
      FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
      WHERE i.indrelid = 'pg_temp.toolkit_sample'::regclass) AS s
  ON s.made_of = o.made_of AND s.relam = o.relam AND s.indnkeyatts = o.indnkeyatts
  AND s.indclass::oid[] = o.indclass::oid[] AND s.indoption::int2[] = o.indoption::int2[]
  AND s.indisunique = o.indisunique
  AND pg_get_expr(s.indpred, s.indrelid) IS NOT DISTINCT FROM pg_get_expr(o.indpred, o.indrelid)
GROUP BY o.indexrelid
