-- What: notes before which time the buckets of a rollup go.
UPDATE {rollup} AS r SET gone_before = {mark}::timestamptz
WHERE r.id = {rollup_id} AND coalesce(r.gone_before < {mark}::timestamptz, true)
