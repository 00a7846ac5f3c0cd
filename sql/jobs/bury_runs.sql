-- What: records runs whose process is gone; who asks holds the job's lock, so none of them runs.
-- Params: job.
UPDATE {runs} SET status = 'killed', ended_at = clock_timestamp()
WHERE job = %(job)s AND status = 'running'
