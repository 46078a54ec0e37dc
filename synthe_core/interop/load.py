"""Loading any model that can generate: a checkpoint, a GGUF file, or a model folder of transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.huggingface import transformers_model
from synthe_core.interop.huggingface.published import Config
from synthe_core.interop.huggingface.weight_maps import ARCHITECTURES
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.path_format import CONFIG, format_of


def load_model(
    path: Path, name: str | None = None, device: torch.device | str = "cpu", *, batch_invariant: bool = True
) -> LoadedModel:
    """The model at `path`, run by our learners where they express its architecture, and by transformers otherwise.

    batch_invariant: choose kernels with which a text does not depend on the texts beside it, where there are such.
    """
    if needs_transformers(path):
        return transformers_model.load(path, name, device)
    stem = path.resolve().name.removesuffix(".synapse").removesuffix(".gguf")
    return LoadedModel.from_checkpoint(Checkpoint.open(path), name or stem, device, batch_invariant=batch_invariant)


def needs_transformers(path: Path) -> bool:
    """Whether `path` is a model folder of an architecture that is not in our table."""
    if format_of(path) != "huggingface":
        return False
    names = Config.read(path / CONFIG).get("architectures", [])
    return not (isinstance(names, list) and names and names[0] in ARCHITECTURES)
