"""Training: folds a stream of text through a model and its state, yields events, leaves checkpoints."""

from synthe_core.training.run import recipe_from_checkpoint, train

__all__ = ["recipe_from_checkpoint", "train"]
