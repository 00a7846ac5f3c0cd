-- What: adds to how often series were read; what was counted before is halved every day.
-- Params: datasets, series, steps, reads, widths, behind: arrays, an element a series and step.
INSERT INTO {popularity} AS p (series_id, step, reads, width, behind)
SELECT s.id, n.step, n.reads, n.width, n.behind
FROM unnest(%(datasets)s::text[], %(series)s::text[], %(steps)s::text[], %(reads)s::float8[],
            %(widths)s::interval[], %(behind)s::interval[])
    AS n (dataset, series, step, reads, width, behind)
JOIN {dataset} AS d ON d.name = n.dataset
JOIN {series} AS s ON s.dataset_id = d.id AND s.name = n.series
ORDER BY s.id, n.step
ON CONFLICT (series_id, step) DO UPDATE
SET reads = excluded.reads
        + p.reads * power(0.5, least(extract(epoch FROM now() - p.at) / 86400, 1000)::float8),
    at = now(), width = excluded.width, behind = excluded.behind
