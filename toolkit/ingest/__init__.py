"""From any frame to a checked batch, and from a batch to PostgreSQL's binary COPY."""
