-- What: which columns of a table its indexes are made of, and which others may not be NULL.
-- Params: table (an oid).
-- Columns: the first, the second.
SELECT coalesce(array_agg(a.attname::text) FILTER (WHERE u.is_used), '{{}}'),
       coalesce(array_agg(a.attname::text) FILTER (WHERE NOT u.is_used AND a.attnotnull), '{{}}')
FROM pg_attribute AS a
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT FROM pg_index AS i
        WHERE i.indrelid = a.attrelid AND (a.attnum = ANY (i.indkey) OR EXISTS (
            -- of an expression or a condition
            SELECT FROM pg_depend AS d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
              AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum))
    ) AS is_used
) AS u
WHERE a.attrelid = %(table)s::oid AND a.attnum > 0 AND NOT a.attisdropped
