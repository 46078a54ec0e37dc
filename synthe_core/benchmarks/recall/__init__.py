"""Benchmarks of learners on synthetic tasks: one trial, sweeps of trials, and their reports."""
