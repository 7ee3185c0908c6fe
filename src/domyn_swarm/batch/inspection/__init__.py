"""A job read back, while it runs or afterwards: settled rows, results, verification."""
