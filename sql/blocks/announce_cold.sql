-- What: says until when there may be blocks, before there are: readers look at it.
-- Params: dataset_id, upto.
UPDATE {dataset} SET cold_to = %(upto)s
WHERE id = %(dataset_id)s AND (cold_to IS NULL OR cold_to < %(upto)s)
