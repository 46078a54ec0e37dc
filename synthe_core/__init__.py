"""The engine of synthe: recipes, learners, training, generation. It never prints; long verbs yield events."""

__version__ = "0.1.0"
