"""The model of a recipe with a `PublishedSpec`, built with initial weights or without storage."""

from __future__ import annotations

from synthe_core.interop.huggingface.pretrained import from_config
from synthe_core.interop.huggingface.transformers_model import TransformersModel
from synthe_core.model.published_spec import PublishedSpec


def build(spec: PublishedSpec, recompute: bool = False) -> TransformersModel:
    """The model of transformers on torch's default device, in float32. recompute: layers keep their inputs only."""
    inner = from_config(spec.config, spec.architecture)
    if recompute:
        inner.activation_checkpointing_enable({"use_reentrant": False})
    return TransformersModel(inner, spec)
