"""Jobs over a Ray cluster: its actors are the workers, its blocks the rows."""
