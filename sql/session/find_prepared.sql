-- What: the name the server knows this very statement by, when it is run as a prepared one: ours,
--   or that of a pooler, which then prepares it wherever a transaction may be.
-- Columns: name.
SELECT name FROM pg_prepared_statements WHERE statement LIKE '%this very statement%'
