-- What: how many rows forget_popularity would remove.
-- Params: none; least, of reads that are left, is part of the text.
-- Columns: how many.
SELECT count(*) FROM {popularity} AS p
WHERE p.reads * power(0.5, least(extract(epoch FROM now() - p.at) / 86400, 1000)) < {least}
