"""Loading any model that can generate: a checkpoint, a GGUF file, or a model folder of transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.hub import local_path
from synthe_core.interop.huggingface import backend
from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.published import Published, UnsupportedModel, check_depth
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.hub.snapshot import model_name
from synthe_core.storage.path_format import format_of


def load_model(
    path: Path, name: str | None = None, device: torch.device | str = "cpu", *, batch_invariant: bool = True
) -> LoadedModel:
    """The model at `path`, or of an id of the hub, run by our learners where they express it, otherwise by
    transformers.

    batch_invariant: choose kernels with which a text does not depend on the texts beside it, where there are such.
    """
    path = local_path(path)
    if needs_transformers(path):
        return backend.load(path, name or model_name(path), device)
    name = name or model_name(path)
    return LoadedModel.from_checkpoint(Checkpoint.open(path), name, device, batch_invariant=batch_invariant)


def needs_transformers(path: Path) -> bool:
    """Whether `path` is a model folder whose architecture, or an option of it, our learners do not express."""
    if format_of(path) != "huggingface":
        return False
    published = Published(path)
    check_depth(published.config, len(published))  # before a plan of as many layers is made
    try:
        plan(published.config)
    except UnsupportedModel:
        return True
    return False
