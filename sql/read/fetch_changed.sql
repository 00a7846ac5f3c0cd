-- What: the states of one series' changed buckets, computed from its points.
-- Params: the series id, the changed ranges, width, origin, and the bounds of the read; where a
--   long range is read they are $1 to $6 of run_if_changed_v1, else columns and parameters of the
--   statement around.
-- Columns: count, points touched, packed states.
SELECT count(*), sum(q.n)::bigint, {packed}
FROM (
    SELECT date_bin({width}, t.ts, {origin}) AS ts, count(*) AS n{states}
    FROM unnest({ranges}) AS r (span)
    CROSS JOIN LATERAL (
        SELECT {inputs}
        FROM {points} AS c
        WHERE c.series_id = {series_id} AND c.ts >= lower(r.span) AND c.ts < upper(r.span)
          AND c.ts >= {low} AND c.ts < {high}
        OFFSET 0
    ) AS t
    GROUP BY 1
    ORDER BY 1
) AS q
