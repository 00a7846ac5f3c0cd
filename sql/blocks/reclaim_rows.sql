-- What: gives the space of moved rows back to the system; by the table's owner, outside a
--   transaction. Safe beside readers: only what no snapshot sees any more goes.
VACUUM (TRUNCATE ON, INDEX_CLEANUP ON) {partition}
