"""LLM server programs: command line, readiness, metrics, log diagnosis."""
