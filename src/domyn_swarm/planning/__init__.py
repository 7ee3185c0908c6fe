"""Derives a plan from a configuration: pure, serialisable, the same for every backend."""
