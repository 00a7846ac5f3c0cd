-- What: how each job's runs went: the last one, the last that succeeded, how many failed since, how
--   long those of the last thousand take that did something. Runs for what was named do not count.
-- Params: jobs.
-- Columns: job, status of the last, when it began, when it ended, its counts, what it said,
--   when the last success began, failures since, median seconds.
SELECT j.job,
       CASE WHEN l.status = 'running' AND NOT pg_is_in_recovery() AND NOT EXISTS (
           -- who may not see when a session began believes that it is the one
           SELECT FROM pg_stat_activity AS a
           WHERE a.pid = l.pid AND coalesce(a.backend_start <= l.started_at, true)
       ) THEN 'killed' ELSE l.status END,
       l.started_at, l.ended_at, l.counts, l.said, s.started_at, m.failures, m.seconds
FROM unnest(%(jobs)s::text[]) AS j (job)
CROSS JOIN LATERAL (
    SELECT r.* FROM {runs} AS r WHERE r.job = j.job AND r.targets = '{{}}'
    ORDER BY r.started_at DESC, r.id DESC LIMIT 1
) AS l
LEFT JOIN LATERAL (
    SELECT r.started_at FROM {runs} AS r
    WHERE r.job = j.job AND r.targets = '{{}}' AND r.status IN ('done', 'nothing')
    ORDER BY r.started_at DESC LIMIT 1
) AS s ON true
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE r.started_at > coalesce(s.started_at, '-infinity')
                            AND r.status IN ('failed', 'killed')) AS failures,
           percentile_cont(0.5) WITHIN GROUP (
               ORDER BY extract(epoch FROM r.ended_at - r.started_at))
               FILTER (WHERE r.status = 'done')::float8 AS seconds
    FROM (  -- one that runs every minute seldom finds work, and is looked at for half a day
        SELECT r.* FROM {runs} AS r WHERE r.job = j.job AND r.targets = '{{}}'
        ORDER BY r.started_at DESC LIMIT 1000) AS r
) AS m
