"""What a job writes: rows joined with their results, as files that are whole or absent."""
