"""The decoder: sequences, scheduling, sampling and cached states."""
