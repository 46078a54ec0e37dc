"""The models of an engine by the names that requests use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from synthe_core.adapters.lora import Adapter
from synthe_core.errors import InputError, closest
from synthe_core.inference.loaded_model import Fingerprints, LoadedModel
from synthe_core.inference.request import NotFound


class ResolvedModel(NamedTuple):
    """What a name stands for: a model, its adapter (None: without one) with its name, and the fingerprints of both."""

    model: LoadedModel
    adapter_name: str | None
    adapter: Adapter | None
    fingerprints: Fingerprints


class ModelRegistry:
    """Read by any thread; changed by the engine's, as fingerprints need the model to themselves."""

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.models: dict[str, LoadedModel] = {model.name: model for model in models}
        if len(self.models) < len(models):
            raise InputError("two models have the same name", "give each a name of its own")
        self._resolved: dict[str, ResolvedModel] = {}
        for model in models:
            for adapter in (None, *model.adapters):
                self.register(model, adapter)

    def resolve(self, name: str) -> ResolvedModel:
        """What `base` or `base:adapter` stands for; raises NotFound."""
        resolved = self._resolved.get(name.removesuffix(":"))
        if resolved is None:
            names, short = list(self._resolved), name[:100]
            near = closest(short, names)
            hint = f"did you mean '{near}'?" if near else f"served here: {', '.join(names)}"
            raise NotFound(f"no such model: {short}", hint)
        return resolved

    def register(self, model: LoadedModel, adapter_name: str | None) -> None:
        """Makes a model available with one of its adapters, or without."""
        adapter = model.adapters[adapter_name] if adapter_name else None
        with torch.inference_mode():
            fingerprints = model.fingerprints(adapter)
        name = f"{model.name}:{adapter_name}" if adapter_name else model.name
        self._resolved[name] = ResolvedModel(model, adapter_name, adapter, fingerprints)

    def remove_adapter(self, model: LoadedModel, adapter_name: str) -> ResolvedModel:
        """Makes an adapter unavailable; sequences that use it go on."""
        model.adapters.pop(adapter_name, None)
        return self._resolved.pop(f"{model.name}:{adapter_name}")
