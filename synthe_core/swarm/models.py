"""The models of a swarm in one engine: the base with every adapter, and those that specialists bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.load import load_model
from synthe_core.swarm.features import Embed, shortened
from synthe_core.swarm.folder import SwarmFolder

BASE = "base"
MAX_TEXTS = 64
"""Texts that are embedded at a time."""


def load_models(folder: SwarmFolder, device: str = "cpu", weights: str = "auto") -> list[LoadedModel]:
    """The base, named `base`, and each other model once, named by the first specialist that has it. weights: the format
    of their matrices, see `load_model`."""
    paths = {BASE: folder.base, **{name: path for path, name in _others(folder).items()}}
    return [load_model(Path(path), name, device, weights=weights) for name, path in paths.items()]


def attach_adapters(folder: SwarmFolder, engine: AsyncEngine) -> dict[str, str]:
    """Loads every specialist's adapter; returns under which name of the engine each specialist runs."""
    names, others = {}, _others(folder)
    for name, spec in folder.spec.specialists.items():
        model = BASE if spec.model is None else others[folder.resolve(spec.model)]
        names[name] = model
        if spec.adapter is not None:
            engine.load_adapter(model, name, Path(folder.resolve(spec.adapter)))
            names[name] = f"{model}:{name}"
    return names


def embedder(engine: AsyncEngine, model: str = BASE) -> Embed:
    """Embeds texts with the base, without an adapter, as many at a time as the engine runs."""
    tokenizer, size = engine.models[model].tokenizer, min(MAX_TEXTS, engine.engine.admission.max_num_seqs)

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = [shortened(tokenizer.encode(text)) or (tokenizer.end,) for text in texts]
        parts = [engine.embed(model, tokens[first : first + size]) for first in range(0, len(tokens), size)]
        return np.concatenate([part.float().cpu().numpy() for part in parts])

    return embed


def _others(folder: SwarmFolder) -> dict[str, str]:
    """The names of the models that are not the base, by path."""
    names: dict[str, str] = {}
    for name, spec in folder.spec.specialists.items():
        if spec.model is not None:
            names.setdefault(folder.resolve(spec.model), name)
    return names
