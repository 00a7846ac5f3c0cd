-- What: how each job's runs went: the last one, the last that succeeded, how many failed since, how
--   long runs that did something take. Runs for something that was named are not among them.
-- Params: jobs.
-- Columns: job, status of the last, when it began, when it ended, its counts, what it said,
--   when the last success began, failures since, median seconds.
SELECT j.job,
       CASE WHEN l.status = 'running' AND NOT pg_is_in_recovery() AND NOT EXISTS (
           -- who may not see when a session began believes that it is the one
           SELECT FROM pg_stat_activity AS a
           WHERE a.pid = l.pid AND coalesce(a.backend_start <= l.started_at, true)
       ) THEN 'killed' ELSE l.status END,
       l.started_at, l.ended_at, l.counts, l.said, s.started_at, f.failures, m.seconds
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
    SELECT count(*) AS failures FROM {runs} AS r
    WHERE r.job = j.job AND r.targets = '{{}}' AND r.status IN ('failed', 'killed')
      AND r.started_at > coalesce(s.started_at, '-infinity')
) AS f
CROSS JOIN LATERAL (
    SELECT percentile_cont(0.5) WITHIN GROUP (
        ORDER BY extract(epoch FROM r.ended_at - r.started_at))::float8 AS seconds
    FROM (SELECT * FROM {runs} AS r
          WHERE r.job = j.job AND r.targets = '{{}}' AND r.status = 'done'
          ORDER BY r.started_at DESC LIMIT 20) AS r
) AS m
