-- What: a place for a batch until it is merged; it is gone with the transaction.
CREATE TEMPORARY TABLE toolkit_stage ({declared}) ON COMMIT DROP
