-- What: how each job's runs went: the last one, the last that succeeded, how many failed since, how
--   long runs that did something take.
-- Columns: job, status of the last, when it began, when it ended, its counts, what it said,
--   when the last success began, failures since, median seconds, server's time.
SELECT j.job, l.status, l.started_at, l.ended_at, l.counts, l.said,
       s.started_at, f.failures, m.seconds, clock_timestamp()
FROM (SELECT DISTINCT job FROM {runs}) AS j
CROSS JOIN LATERAL (
    SELECT r.* FROM {runs} AS r WHERE r.job = j.job ORDER BY r.started_at DESC, r.id DESC LIMIT 1
) AS l
LEFT JOIN LATERAL (
    SELECT r.started_at FROM {runs} AS r
    WHERE r.job = j.job AND r.status IN ('done', 'nothing')
    ORDER BY r.started_at DESC LIMIT 1
) AS s ON true
CROSS JOIN LATERAL (
    SELECT count(*) AS failures FROM {runs} AS r
    WHERE r.job = j.job AND r.status IN ('failed', 'killed')
      AND r.started_at > coalesce(s.started_at, '-infinity')
) AS f
CROSS JOIN LATERAL (
    SELECT percentile_cont(0.5) WITHIN GROUP (
        ORDER BY extract(epoch FROM r.ended_at - r.started_at))::float8 AS seconds
    FROM (SELECT * FROM {runs} AS r WHERE r.job = j.job AND r.status = 'done'
          ORDER BY r.started_at DESC LIMIT 20) AS r
) AS m
