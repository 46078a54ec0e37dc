"""Operators: each file is one operator, its readable reference recurrence first, then its faster kernels."""
