-- What: removes old runs of jobs; of each job the last run and the last that was well stay.
-- Params: none; before, an instant, is part of the text.
DELETE FROM {runs} AS r
WHERE r.started_at < {before}
  AND r.id NOT IN (SELECT max(l.id) FROM {runs} AS l GROUP BY l.job)
  AND r.id NOT IN (
    SELECT max(s.id) FROM {runs} AS s WHERE s.status IN ('done', 'nothing') GROUP BY s.job
  )
