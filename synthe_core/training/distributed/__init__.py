"""Training by several processes: who they are, how they share a model, and how they are started."""
