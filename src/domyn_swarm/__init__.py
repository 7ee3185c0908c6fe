"""Replicas of an LLM server behind one endpoint, and resumable batch jobs through it."""

__version__ = "0.1.0"
