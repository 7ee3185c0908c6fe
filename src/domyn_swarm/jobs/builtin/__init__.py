"""The built-in jobs, and their common parts."""
