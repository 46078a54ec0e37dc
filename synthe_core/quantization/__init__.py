"""Quantised tensors: their formats and how they are read."""
