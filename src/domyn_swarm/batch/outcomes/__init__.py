"""What becomes of rows, and the figures of it: results, verdicts, tallies, time left."""
