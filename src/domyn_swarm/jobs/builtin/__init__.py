"""The built-in jobs, and what they share."""
