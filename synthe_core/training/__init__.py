"""Training: folds a stream of text through a model and its state, yields events, leaves checkpoints."""

from synthe_core.training.run import recipe_of, train

__all__ = ["recipe_of", "train"]
