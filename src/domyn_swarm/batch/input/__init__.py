"""What a job reads: files and frames as rows, each with an id and a key."""
