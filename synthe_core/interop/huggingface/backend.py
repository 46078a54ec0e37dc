"""Published models run by the library transformers (extra `hf`) wherever our own models run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter
from synthe_core.adapters.lora_linear import linear_maps
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.huggingface import transformers_trial
from synthe_core.interop.huggingface.invariant_modules import use_primitives
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.huggingface.pretrained import (
    NARROW,
    choose_dtype,
    read_pretrained,
    stored_dtype,
)
from synthe_core.interop.huggingface.transformers_model import TransformersModel
from synthe_core.interop.huggingface.transformers_trial import FailedTrial
from synthe_core.interop.published_source import PublishedSource
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.model.session import set_weights_digest
from synthe_core.ops.dispatch import batch_invariant_on
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.hub.snapshot import model_name


def load(path: Path, name: str | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """The model folder at `path`, run by transformers whether or not our learners express it."""
    checkpoint = Checkpoint(PublishedSource(HuggingFaceModel(path)))
    return load_checkpoint(checkpoint, name or model_name(path), device)


def load_checkpoint(checkpoint: Checkpoint, name: str, device: torch.device | str = "cpu") -> LoadedModel:
    """The published model of a checkpoint, or of an adapter's with the adapter merged: in the dtype of its weights
    where the device is faster with it, else in float32. InputError for one that fails its trial."""
    context = _context(torch.device(device))  # before the first product
    model = _tried(checkpoint, context)
    with context.activate():
        if context.batch_invariant and not transformers_trial.is_batch_invariant(model):
            context = replace(context, batch_invariant=False)
    source = checkpoint.base or checkpoint
    if "tokenizer.json" not in source.manifest.files:
        raise InputError(f"{source.path} has no tokenizer.json", "fetch it as well")
    set_weights_digest(cast(LanguageModel, model), checkpoint.weights_digest)
    return LoadedModel(
        name,
        cast(LanguageModel, model),  # it has the interface that the engine uses
        checkpoint.tokenizer(),
        checkpoint.path,
        checkpoint.digest,
        int(checkpoint.path.stat().st_mtime),
        max_length=model.limit,
        base_digests=checkpoint.base_digests,
        context=context,
    )


def _tried(checkpoint: Checkpoint, context: ExecutionContext) -> TransformersModel:
    """The model on the context's device, in the first dtype in which it passes the trial."""
    tensors = (checkpoint.base or checkpoint).tensors
    dtype = choose_dtype(tensors, context.device, probe())
    try:
        return _opened(checkpoint, tensors, dtype, context)
    except FailedTrial:
        if stored_dtype(tensors) not in NARROW or dtype == torch.float32:
            raise
        return _opened(checkpoint, tensors, torch.float32, context)  # what rounds too coarsely for its pieces


def _opened(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], dtype: torch.dtype, context: ExecutionContext
) -> TransformersModel:
    spec, path = checkpoint.recipe.model, (checkpoint.base or checkpoint).path
    assert isinstance(spec, PublishedSpec)
    inner = read_pretrained(spec.config, tensors, path, dtype).to(context.device).requires_grad_(False)
    if checkpoint.adapter is not None:
        _merge(inner, checkpoint.adapter, checkpoint.path)
    if context.batch_invariant:
        use_primitives(inner)
    model = TransformersModel(inner, spec)
    transformers_trial.check(model)
    return model


@torch.no_grad()
def _merge(inner: torch.nn.Module, adapter: Adapter, path: Path) -> None:
    """W + s B A of every map that an adapter changes. InputError if it is of another model."""
    maps = linear_maps(inner)
    for name, change in adapter.maps.items():
        adapter.check(name, maps[name].weight.shape if name in maps else None, path)
        maps[name].weight.copy_(change.merge(maps[name].weight))


def _context(device: torch.device) -> ExecutionContext:
    """A batch-invariant context where the device has such kernels."""
    return ExecutionContext(device=device, batch_invariant=batch_invariant_on(device.type, {}))
