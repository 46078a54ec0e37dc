"""Models in the format of Hugging Face's transformers, in and out."""

from synthe_core.interop.huggingface.exporter import export_hf
from synthe_core.interop.huggingface.importer import import_hf

__all__ = ["export_hf", "import_hf"]
