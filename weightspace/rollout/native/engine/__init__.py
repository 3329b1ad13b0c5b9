"""Programs as numbers in memory, compiled C, and calls of it."""
