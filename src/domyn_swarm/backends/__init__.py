"""Platforms to run on, and the programs that run on their nodes."""
