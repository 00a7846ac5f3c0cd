-- What: removes what jobs have noted of parts of a dataset that are no more.
-- Params: none; of, the name of the dataset, and starts, where the parts began, are part of the text.
DELETE FROM {looked} AS l
USING {dataset} AS d
WHERE d.id = l.dataset_id AND d.name = {of} AND l.start = ANY ({starts})
