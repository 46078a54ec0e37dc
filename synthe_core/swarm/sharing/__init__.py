"""Specialists as files that move between machines."""
