"""Lifecycle, jobs and snapshots of a swarm."""
