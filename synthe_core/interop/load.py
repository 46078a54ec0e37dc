"""Loading any model that can generate: a checkpoint, a GGUF file, or a model folder of transformers."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.weights import FLOAT32, choose_weights
from synthe_core.interop.hub import local_path
from synthe_core.interop.huggingface import backend
from synthe_core.interop.source import ConvertedSource
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.offload.load import check_no_limit
from synthe_core.offload.plan import TEXTS
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.hub.snapshot import model_name


def load_model(
    path: Path,
    name: str | None = None,
    device: torch.device | str = "cpu",
    *,
    batch_invariant: bool = True,
    weights: str = FLOAT32,
    memory: int | None = None,
    texts: int = TEXTS,
) -> LoadedModel:
    """The model at `path`, or of an id of the hub, run by our learners where they express it, otherwise by
    transformers.

    batch_invariant: choose kernels with which a text does not depend on the texts beside it, where there are such.
    weights: the format of the matrices, one of `inference.weights.WEIGHTS`. memory: the bytes that this process may
    take, with `texts` at once, None for no limit: see `LoadedModel.from_checkpoint`.
    """
    path = local_path(path)
    checkpoint, name = Checkpoint.open(path), name or model_name(path)
    return load_checkpoint(
        checkpoint, name, device, batch_invariant=batch_invariant, weights=weights, memory=memory, texts=texts
    )


def load_checkpoint(
    checkpoint: Checkpoint,
    name: str,
    device: torch.device | str = "cpu",
    *,
    batch_invariant: bool = True,
    weights: str = FLOAT32,
    memory: int | None = None,
    texts: int = TEXTS,
) -> LoadedModel:
    """The model of an open checkpoint, or of an adapter's with the adapter merged."""
    if isinstance(checkpoint.source, ConvertedSource):
        for notice in checkpoint.source.notices:
            warnings.warn(f"{name}: {notice}", stacklevel=2)
    if isinstance(checkpoint.recipe.model, PublishedSpec):
        choose_weights(weights, checkpoint, str(device))
        check_no_limit(memory)
        return backend.load_checkpoint(checkpoint, name, device)
    return LoadedModel.from_checkpoint(
        checkpoint, name, device, batch_invariant=batch_invariant, weights=weights, memory=memory, texts=texts
    )
