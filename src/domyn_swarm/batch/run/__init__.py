"""A run: rows to requests to results, in one process or several."""
