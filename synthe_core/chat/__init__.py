"""Conversations, with a model in this process or on a server."""
