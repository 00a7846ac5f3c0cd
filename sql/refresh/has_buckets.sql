-- What: whether a rollup has buckets of a series in [start, end); a part of list_audited.
-- Params: start, end.
OR EXISTS (
    SELECT FROM {relation} AS t
    WHERE t.series_id = s.id AND t.ts >= %(start)s AND t.ts < %(end)s
    OFFSET 0
)
