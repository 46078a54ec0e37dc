"""Training: folds a stream of text through a model and its state, yields events, leaves checkpoints."""

from synthe_core.training.session import train

__all__ = ["train"]
