"""What the user wrote: models, loading, defaults, provenance."""
