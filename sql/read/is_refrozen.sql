-- What: whether retention has moved the mark since who asks has seen it: points may be gone that an
--   answer was to be made of. Asked in the statement itself, so of its snapshot.
-- Params: frozen, the mark as it was seen.
(SELECT d.frozen_before IS DISTINCT FROM %(frozen)s::timestamptz FROM {dataset} AS d
 WHERE d.id = {dataset_id})
