"""An adapter of a published model over a checkpoint that was imported from it."""

from __future__ import annotations

from pathlib import Path

from synthe_core.adapters.lora import Adapter
from synthe_core.errors import InputError
from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.pretrained import with_floats
from synthe_core.interop.huggingface.published import Config
from synthe_core.interop.published_adapter import on_learners
from synthe_core.interop.published_shapes import Conversion, RecordedShapes
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.manifest import MANIFEST


def fitted(adapter: Adapter, model: Checkpoint, path: Path) -> Adapter:
    """The adapter with the same effect on the imported model, by what its manifest records of the published one.

    The adapter itself, where it names our maps, or where the manifest was written before that was recorded. InputError
    for an adapter of another model, and for a manifest that does not fit the weights.
    """
    tensors, source = model.tensors, model.published
    if "config" not in source or all(f"{name}.weight" in tensors for name in adapter.maps):
        return adapter
    where = model.path / MANIFEST
    shapes = RecordedShapes(source.get("shapes"), where)
    if not isinstance(source["config"], dict):
        raise InputError(f"{where} is damaged: it has no config of the published model", "import the model again")
    layout = plan(Config(where, with_floats(source["config"]))).spelled_as(shapes)
    origins = layout.origins("head.weight" not in tensors)
    if origins.keys() != set(tensors) or any(each not in shapes for one in origins.values() for each in one.names):
        raise InputError(f"{where} is damaged: it records another published model", "import the model again")
    return on_learners(adapter, Conversion(origins, {name: tensors.shape(name) for name in tensors}, shapes), path)
