"""A load test of an OpenAI-compatible server."""
