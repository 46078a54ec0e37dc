"""Memory: what a recipe needs to train and to serve, predicted, measured, and fitted to a machine."""
