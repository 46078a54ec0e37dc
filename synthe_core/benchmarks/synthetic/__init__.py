"""Synthetic tasks: recall, copying, state tracking."""
