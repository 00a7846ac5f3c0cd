-- What: keeps what statements took until now, and which indexes there are.
-- Params: counted_since, statements (JSON), indexes.
-- Columns: when.
INSERT INTO {snapshots} (counted_since, statements, indexes)
VALUES (%(counted_since)s, %(statements)s, %(indexes)s)
RETURNING taken_at
