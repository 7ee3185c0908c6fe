"""The checkpoint: a job's results on disk, safe from kills and from a second driver."""
