-- What: how many runs of jobs forget_runs would remove.
-- Params: none; before, an instant, is part of the text.
-- Columns: how many.
SELECT count(*) FROM {runs} AS r
WHERE r.started_at < {before}
  AND r.id NOT IN (SELECT max(l.id) FROM {runs} AS l GROUP BY l.job)
  AND r.id NOT IN (
    SELECT max(s.id) FROM {runs} AS s WHERE s.status IN ('done', 'nothing') GROUP BY s.job
  )
