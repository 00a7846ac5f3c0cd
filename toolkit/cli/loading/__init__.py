"""Files to be loaded: read in pieces of bounded size, checked whole, errors by line."""
