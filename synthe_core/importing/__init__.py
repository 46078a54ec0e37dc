"""Importing: a model that another program has written becomes a checkpoint."""

from synthe_core.importing.hf import import_hf

__all__ = ["import_hf"]
