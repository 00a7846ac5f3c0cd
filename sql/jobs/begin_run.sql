-- What: records that a job has begun. Params: job. Columns: id, started_at.
INSERT INTO {runs} (job) VALUES (%(job)s) RETURNING id, started_at
