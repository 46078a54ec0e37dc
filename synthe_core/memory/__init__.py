"""How much memory a recipe takes, to train and to serve: predicted, measured, and fitted to a machine."""
