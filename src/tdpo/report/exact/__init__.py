"""The page on the exact benchmark, from its tables."""
