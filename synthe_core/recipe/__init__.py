"""The recipe: one YAML file that is the whole experiment."""
