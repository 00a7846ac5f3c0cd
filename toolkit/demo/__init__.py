"""The tour: real servers, real bars, and reads that say how they were answered."""
