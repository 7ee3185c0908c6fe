"""The state database: an index of swarms and jobs that `reconcile` can rebuild."""
