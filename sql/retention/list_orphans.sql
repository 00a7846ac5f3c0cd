-- What: tables that retention has marked and detached, and was then kept from dropping. Only those
--   that carry the mark: what somebody else detached is theirs.
-- Params: schema, parent (its name), mark.
-- Columns: name, bytes with indexes.
SELECT c.relname, pg_total_relation_size(c.oid)
FROM pg_class AS c
WHERE c.relnamespace = %(schema)s::regnamespace AND c.relkind = 'r' AND NOT c.relispartition
  AND c.relname ~ ('^' || %(parent)s || '_p[0-9]{{8}}$')
  AND obj_description(c.oid, 'pg_class') = %(mark)s
ORDER BY c.relname
