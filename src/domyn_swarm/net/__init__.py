"""The HTTP client and the OpenAI-shaped client over it."""
