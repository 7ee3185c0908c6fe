"""The endpoint program: router and collector, one per swarm."""
