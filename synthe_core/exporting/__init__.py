"""Exporting: a checkpoint as another program reads it."""

from synthe_core.exporting.hf import export_hf

__all__ = ["export_hf"]
