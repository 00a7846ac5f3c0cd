-- What: what is read most often, by reads a day of which older ones count less.
-- Params: dataset, its name (NULL: all); least, reads that are worth it; most, how many.
-- Columns: dataset, series, step (empty: points), reads, width and how far behind now the last one
--   was, in seconds.
SELECT d.name, s.name, p.step, now.reads, extract(epoch FROM p.width)::float8,
       extract(epoch FROM p.behind)::float8
FROM {popularity} AS p
JOIN {series} AS s ON s.id = p.series_id
JOIN {dataset} AS d ON d.id = s.dataset_id
CROSS JOIN LATERAL (
    SELECT p.reads * power(0.5, least(extract(epoch FROM now() - p.at) / 86400, 1000)::float8)
        AS reads
) AS now
WHERE (%(dataset)s::text IS NULL OR d.name = %(dataset)s::text) AND now.reads >= %(least)s
ORDER BY now.reads DESC, d.name, s.name, p.step
LIMIT %(most)s
