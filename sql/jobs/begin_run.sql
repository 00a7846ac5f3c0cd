-- What: records that a job has begun. Params: job, targets. Columns: id, started_at.
INSERT INTO {runs} (job, targets) VALUES (%(job)s, %(targets)s) RETURNING id, started_at
