"""The checkpoint: what a job's requests came to, on disk, safe from kills and second drivers."""
