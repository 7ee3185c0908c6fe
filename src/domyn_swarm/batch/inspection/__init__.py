"""Reads a job's data back, while it runs or afterwards: settled rows, results, verification."""
