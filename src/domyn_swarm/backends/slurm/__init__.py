"""A swarm as Slurm jobs: a job for the endpoint, and an array with one task per replica."""
