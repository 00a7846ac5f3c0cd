-- What: removes what is hardly read any more: reads are halved every day.
-- Params: none; least, of reads that are left, is part of the text.
DELETE FROM {popularity} AS p
WHERE p.reads * power(0.5, least(extract(epoch FROM now() - p.at) / 86400, 1000)) < {least}
