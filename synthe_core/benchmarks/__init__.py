"""Measurements: paired timings of operators, training and decoding."""
