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
    """Models and their adapters. An adapter that an owner has loaded exists for that owner only; those of "" for all.

    Read by any thread; changed by the engine's, as fingerprints need the model to themselves."""

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.models: dict[str, LoadedModel] = {model.name: model for model in models}
        if len(self.models) < len(models):
            raise InputError("two models have the same name", "give each a name of its own")
        self._resolved: dict[tuple[str, str], ResolvedModel] = {}  # by owner and name
        for model in models:
            for adapter in (None, *model.adapters):
                self.register(model, adapter)

    def names(self, owner: str = "") -> list[str]:
        """Every name that an owner's requests can use: each model, and after it the model with each adapter."""
        visible = [(name, each.model) for (holder, name), each in list(self._resolved.items()) if holder in ("", owner)]
        return [name for model in self.models.values() for name, base in visible if base is model]

    def resolve(self, name: str, owner: str = "") -> ResolvedModel:
        """What `base` or `base:adapter` stands for; raises NotFound."""
        full = name.removesuffix(":")
        resolved = self._resolved.get(("", full)) or self._resolved.get((owner, full))
        if resolved is None:
            names, short = self.names(owner), name[:100]
            near = closest(short, names)
            hint = f"did you mean '{near}'?" if near else f"served here: {', '.join(names)}"
            raise NotFound(f"no such model: {short}", hint)
        return resolved

    def owned_adapters(self, owner: str) -> int:
        """How many adapters an owner has loaded."""
        keys = list(self._resolved.items())
        return sum(holder == owner and each.adapter is not None for (holder, _), each in keys)

    def register(self, model: LoadedModel, adapter_name: str | None, owner: str = "") -> None:
        """Makes a model available with one of its adapters, or without."""
        adapter = model.adapters[owned_name(adapter_name, owner)] if adapter_name else None
        with torch.inference_mode():
            fingerprints = model.fingerprints(adapter)
        name = f"{model.name}:{adapter_name}" if adapter_name else model.name
        self._resolved[owner, name] = ResolvedModel(model, adapter_name, adapter, fingerprints)

    def put_adapter(
        self, model: LoadedModel, adapter_name: str, adapter: Adapter, owner: str = ""
    ) -> ResolvedModel | None:
        """Makes an adapter available, in place of one of that name; returns that one. After an error nothing has
        changed. Sequences that use the old one go on with it."""
        with torch.inference_mode():
            fingerprints = model.fingerprints(adapter)
        key = owner, f"{model.name}:{adapter_name}"
        replaced = self._resolved.get(key)
        model.adapters[owned_name(adapter_name, owner)] = adapter
        self._resolved[key] = ResolvedModel(model, adapter_name, adapter, fingerprints)
        return replaced

    def remove_adapter(self, model: LoadedModel, adapter_name: str, owner: str = "") -> ResolvedModel:
        """Makes an owner's adapter unavailable; sequences that use it go on. NotFound if it is not the owner's."""
        name = f"{model.name}:{adapter_name}"
        if (owner, name) not in self._resolved:
            raise NotFound(f"{name} is not yours to unload", "it was loaded at the start, or by another API key")
        model.adapters.pop(owned_name(adapter_name, owner), None)
        return self._resolved.pop((owner, name))


def owned_name(adapter_name: str, owner: str) -> str:
    """Under which name a model holds an owner's adapter: no adapter's name has a slash."""
    return f"{owner}/{adapter_name}" if owner else adapter_name
