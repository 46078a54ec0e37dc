"""The models that are served, by the names that requests call them, and what their states are recognised by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from synthe_core.adapters.lora import Adapter
from synthe_core.errors import InputError, closest
from synthe_core.inference.request import NoSuch
from synthe_core.inference.served import Prints, Served


class Found(NamedTuple):
    """A model, its adapter with the name of that, and the fingerprints of the two together."""

    served: Served
    name: str | None
    adapter: Adapter | None
    prints: Prints


class Catalogue:
    """Read by any thread; changed by the engine's, as fingerprints need the model to themselves."""

    def __init__(self, models: Sequence[Served]) -> None:
        self.models: dict[str, Served] = {served.name: served for served in models}
        if len(self.models) < len(models):
            raise InputError("two models are to be served under one name", "give each a name of its own")
        self._found: dict[str, Found] = {}
        for served in models:
            for adapter in (None, *served.adapters):
                self.identify(served, adapter)

    def find(self, name: str) -> Found:
        """What `base` or `base:adapter` stands for; raises NoSuch."""
        found = self._found.get(name.removesuffix(":"))
        if found is None:
            names, short = list(self._found), name[:100]
            near = closest(short, names)
            hint = f"did you mean '{near}'?" if near else f"served here: {', '.join(names)}"
            raise NoSuch(f"no such model: {short}", hint)
        return found

    def identify(self, served: Served, name: str | None) -> None:
        """Serves a model with one of its adapters, or without, from now on."""
        adapter = served.adapters[name] if name else None
        with torch.inference_mode():
            prints = served.prints(adapter)
        self._found[f"{served.name}:{name}" if name else served.name] = Found(served, name, adapter, prints)

    def remove(self, served: Served, name: str) -> Found:
        """Serves an adapter no more."""
        served.adapters.pop(name, None)
        return self._found.pop(f"{served.name}:{name}")
