"""The models of a swarm in one engine: the base with every adapter, and those that specialists bring."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Request
from synthe_core.interop.load import load_model
from synthe_core.swarm.folder import SwarmFolder

BASE = "base"


def load_models(folder: SwarmFolder, device: str = "cpu", weights: str = "auto") -> list[LoadedModel]:
    """The base, named `base`, and each other model once, named by the first specialist that has it. weights: the format
    of their matrices, see `load_model`."""
    paths = {BASE: folder.base, **{name: path for path, name in _others(folder).items()}}
    return [load_model(Path(path), name, device, weights=weights) for name, path in paths.items()]


class SpecialistModels:
    """Which model of the engine each specialist runs on: `base`, or another with its adapter. For any thread.

    names:    under which name of the engine each specialist runs, `base` included.
    adapters: the version of its adapter that each runs with, as swarm.yaml names adapters; None for none.
    unavailable: why a specialist cannot answer, by name; it has no other entry then.
    """

    def __init__(self, folder: SwarmFolder, engine: AsyncEngine) -> None:
        self._folder, self._engine = folder, engine
        self._lock = threading.Lock()
        self.names: dict[str, str] = {BASE: BASE}
        self.adapters: dict[str, str | None] = {}
        others = _others(folder)
        self._models = {
            name: BASE if spec.model is None or spec.url is not None else others[folder.resolve(spec.model)]
            for name, spec in folder.spec.specialists.items()
        }
        self.unavailable: dict[str, InputError] = {}
        for name in list(self._models):
            try:
                self.add(name)
            except InputError as error:
                self.leave_out(name, error)

    def add(self, name: str) -> None:
        """Takes up a specialist: one of the beginning, or one on the base that was added since."""
        model = self._models.setdefault(name, BASE)
        self.adapters[name] = None
        self.names[name] = model
        self.follow(name)

    def leave_out(self, name: str, error: InputError) -> None:
        """A specialist cannot answer until it is added again."""
        self.unavailable[name] = error
        model = self.names.pop(name, None)
        if self.adapters.pop(name, None) is not None and model is not None:
            self._engine.unload_adapter(model.rpartition(":")[0], name)

    def follow(self, name: str) -> bool:
        """Brings the current version of a specialist's adapter into the engine, between two of its steps; returns
        whether it is another. After an error the specialist goes on as it was."""
        with self._lock:
            wanted, running, model = self._folder.versions(name).current, self.adapters[name], self._models[name]
            if wanted == running:
                return False
            path = None if wanted is None else Path(self._folder.resolve(wanted))
            if path is None:
                self.names[name] = model  # before the adapter goes, so that nobody looks for it
                self._engine.unload_adapter(model, name)
            elif running is None:
                self._engine.load_adapter(model, name, path)
                self.names[name] = f"{model}:{name}"
            else:
                self._engine.swap_adapter(model, name, path)
            self.adapters[name] = wanted
            return True

    def renewed(self, request: Request) -> Request:
        """The request to what its specialist runs on now: its adapter was unloaded since it was made."""
        name = request.model.rpartition(":")[2]
        return replace(request, model=self.names.get(name, request.model))


def _others(folder: SwarmFolder) -> dict[str, str]:
    """The names of the models that are not the base, by path."""
    names: dict[str, str] = {}
    for name, spec in folder.spec.specialists.items():
        if spec.model is not None and spec.url is None:
            names.setdefault(folder.resolve(spec.model), name)
    return names
