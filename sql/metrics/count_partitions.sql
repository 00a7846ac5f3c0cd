-- What: how many partitions each dataset has, and how many lie after the present one.
-- Params: schema.
-- Columns: dataset, partitions, those after the present one (0 where that is missing).
SELECT d.name, count(c.oid)::integer,
       CASE WHEN coalesce(bool_or(b.low <= clock_timestamp() AND b.high > clock_timestamp()), false)
            THEN (count(*) FILTER (WHERE b.low > clock_timestamp()))::integer ELSE 0 END
FROM {dataset} AS d
LEFT JOIN (
    pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid AND NOT i.inhdetachpending
) ON i.inhparent = to_regclass(format('%%I.%%I', %(schema)s::text, d.name))
LEFT JOIN LATERAL (
    SELECT substring(e.bound FROM 'FROM [(]''([^'']+)''[)]')::timestamptz AS low,
           substring(e.bound FROM 'TO [(]''([^'']+)''[)]')::timestamptz AS high
    FROM (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) AS e
) AS b ON true
GROUP BY d.name ORDER BY d.name
