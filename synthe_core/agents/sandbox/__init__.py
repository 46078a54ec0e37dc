"""Programs that a model has written run here: in namespaces of their own, within limits, and without a network."""
