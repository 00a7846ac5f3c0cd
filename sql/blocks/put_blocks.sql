-- What: stores blocks.
-- Params: one array a column, of one element a block.
INSERT INTO {blocks} ({columns}) SELECT * FROM unnest({arrays}) AS n
