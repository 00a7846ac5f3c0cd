-- What: which texts pass a comparison, in the order that the database gives texts.
-- Params: texts, value.
-- Columns: text.
SELECT t.text FROM unnest(%(texts)s::text[]) AS t (text) WHERE t.text {operator} %(value)s
