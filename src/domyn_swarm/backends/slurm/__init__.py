"""A swarm as Slurm jobs: one for the endpoint, an array of one task per replica."""
