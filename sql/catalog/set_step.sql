-- What: records a series' step where none is known or a finer one was seen.
-- Params: ids, steps (interval).
UPDATE {series} AS s SET step = n.step
FROM unnest(%(ids)s::integer[], %(steps)s::interval[]) AS n (id, step)
WHERE s.id = n.id AND (s.step IS NULL OR s.step > n.step)
