"""Lifecycle, jobs and snapshots of a swarm; the facade over them."""
