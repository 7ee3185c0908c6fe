"""The outcomes of rows and their statistics: results, verdicts, tallies, time left."""
