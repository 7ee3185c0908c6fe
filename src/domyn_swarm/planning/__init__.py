"""From a config to a plan: pure, serialisable, the same for every backend."""
