-- What: gives a series labels, merged into those it has; a NULL value takes one away.
-- Params: dataset_id, name, labels (JSON object).
-- Columns: the labels it has then.
UPDATE {series} SET labels = jsonb_strip_nulls(labels || %(labels)s::jsonb)
WHERE dataset_id = %(dataset_id)s AND name = %(name)s
RETURNING labels
