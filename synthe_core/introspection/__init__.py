"""Seeing inside a model while it reads: what its learners decide, what they remember, and whence a reading comes."""
