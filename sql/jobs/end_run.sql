-- What: records how a run has ended. Params: id, status, counts (JSON), said.
UPDATE {runs}
SET ended_at = clock_timestamp(), status = %(status)s, counts = %(counts)s, said = %(said)s
WHERE id = %(id)s
