"""What several test files use: builders, cases, oracles, a browser."""
